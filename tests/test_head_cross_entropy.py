"""head_cross_entropy against torch's convolution and cross-entropy: values, gradients, layouts, registration, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.places import needs, opcheck, require, slow
from tests.tolerances import CROSS_ENTROPY, EXACT, HEAD_GRADIENT
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, head_cross_entropy, use_backend
from unet_fast.ops.head_cross_entropy import fits_registers

pytestmark = pytest.mark.kernels

BOTH_ENDS = [torch.float32, *slow(torch.float64, torch.float16), torch.bfloat16]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def draw(generator, n, c, k, size, *, dtype=torch.float32, channels_last=False, device="cpu"):
    """features, weight, bias, target (some ignored), pixel weights, feature bias."""

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, wide(dtype))

    features = normal(n, c, *size).to(dtype)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    target = torch.randint(0, k, (n, *size), generator=generator).to(device)
    target[torch.rand(target.shape, generator=generator).to(device) < 0.2] = -100
    return features, normal(k, c), normal(k), target, normal(n, *size).abs(), normal(c)


def plain(features, weight, bias, target, pixel_weight, feature_bias, relu, reduction):
    """torch's own convolution and loss, in float64."""
    y = features.double()
    if relu:
        y = F.relu(y + feature_bias.double()[:, None, None])
    logits = F.conv2d(y, weight.double()[:, :, None, None], bias.double())
    loss = F.cross_entropy(logits, target, reduction="none") * pixel_weight.double()
    if reduction == "sum":
        return loss.sum()
    counted = target != -100
    return loss.sum() / (counted.sum() if reduction == "mean" else pixel_weight.double()[counted].sum())


@pytest.mark.parametrize("dtype", BOTH_ENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("case", "reduction"),
    [
        ((2, 16, 2, (9, 11)), "mean"),
        pytest.param((1, 33, 5, (40, 30)), "weight_mean", marks=needs("speed")),
        ((3, 1, 2, (1, 7)), "sum"),
        pytest.param((1, 7, 20, (5, 5)), "mean", marks=needs("speed")),
    ],
)
def test_matches_torch(case, reduction, relu, channels_last, dtype, place, generator):
    if not fits_registers(case[2], case[1], dtype):
        require("classes")
    features, weight, bias, target, pixels, extra = draw(
        generator, *case, dtype=dtype, channels_last=channels_last, device=place
    )
    leaves = [features, weight, bias, *([extra] if relu else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = head_cross_entropy(
        features, weight, bias, target, pixels, relu=relu, feature_bias=extra if relu else None, reduction=reduction
    )
    expected = plain(features, weight, bias, target, pixels, extra, relu, reduction)
    assert loss.dtype == wide(dtype)
    torch.testing.assert_close(loss.double(), expected, **CROSS_ENTROPY[dtype])
    got = torch.autograd.grad(loss * 0.75, leaves)
    want = torch.autograd.grad(expected * 0.75, leaves)
    for a, b, leaf in zip(got, want, leaves, strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        error = (a.double() - b.double()).abs().max()
        # the terms of a bias may cancel, those of the weights beside it seldom do
        size = max(b.double().abs().max(), want[1].double().abs().max() if leaf.dim() == 1 else 0.0)
        assert error <= HEAD_GRADIENT[leaf.dtype] * size, (error, size, leaf.shape)


def test_ignored_pixels_count_for_nothing(generator):
    features, weight, bias, target, pixels, extra = draw(generator, 1, 8, 3, (6, 7))
    target[0, :2] = -100
    results = []
    for poison in (0.0, float("nan")):
        for last in (False, True):
            x = features.masked_fill((target == -100)[:, None], poison)
            x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
            w = weight.clone().requires_grad_()
            loss = head_cross_entropy(x, w, bias, target, pixels, relu=True, feature_bias=extra)
            results.append((loss, *torch.autograd.grad(loss, (x, w))))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)
    none = head_cross_entropy(features, weight.requires_grad_(), None, torch.full_like(target, -100))
    assert none == 0
    none.backward()
    assert weight.grad.eq(0).all()


def misaligned(tensor):
    """The same numbers and strides, one element behind the start of a vector."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    view = storage[1:].as_strided(tensor.shape, tensor.stride(), 1)
    assert view.data_ptr() % 16
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", BOTH_ENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_slices_that_start_in_the_middle_of_a_vector(classes, channels_last, dtype, place, generator):
    """Every tensor one element off: where whole tensors go through whole vectors, these may not, and give the same bits."""
    drawn = draw(generator, 2, 8, classes, (4, 16), dtype=dtype, channels_last=channels_last, device=place)
    results = []
    for move in (torch.clone, misaligned):
        features, weight, bias, target, pixels, extra = (move(tensor) for tensor in drawn)
        leaves = [leaf.requires_grad_() for leaf in (features, weight, bias, extra)]
        loss = head_cross_entropy(features, weight, bias, target, pixels, relu=True, feature_bias=extra)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    # compiled for a GPU, a Triton kernel adds up in another order where it cannot read whole vectors
    compiled = place == "cuda" and _backends.choose("head_cross_entropy", place) == "triton"
    torch.testing.assert_close(*results, **({} if compiled else EXACT))


@pytest.mark.parametrize("dtype", BOTH_ENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("classes", "reduction"), [(2, "mean"), (3, "weight_mean"), (4, "sum")])
def test_nothing_of_ignored_pixels_is_used(classes, reduction, channels_last, dtype, place, generator):
    """NaN and infinities in their features and weights, beside pixels whose weight is 0: no bit changes."""
    drawn = draw(generator, 2, 8, classes, (5, 12), dtype=dtype, channels_last=channels_last, device=place)
    target, pixels = drawn[3], drawn[4]
    target[0, 1], target[1, :, 3] = -100, -100
    ignored = target == -100
    for beside in (pixels[0, 0], pixels[0, 2], pixels[1, :, 2], pixels[1, :, 4]):
        beside.fill_(0)
    results = []
    for poison in (0.0, float("nan"), float("inf"), -float("inf")):
        leaves = [drawn[0].masked_fill(ignored[:, None], poison), *(drawn[i].clone() for i in (1, 2, 5))]
        features, weight, bias, extra = (leaf.requires_grad_() for leaf in leaves)
        given = pixels.masked_fill(ignored, poison)
        loss = head_cross_entropy(
            features, weight, bias, target, given, relu=True, feature_bias=extra, reduction=reduction
        )
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    assert results[0][1].movedim(1, -1)[ignored | (pixels == 0)].eq(0).all()
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], **EXACT)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_counted_pixel_that_is_not_finite_shows_itself(classes, value, relu, channels_last, place, generator):
    """Also where its weight is 0, as in torch; its neighbours, of weight 0 or not, keep their gradient."""
    features, weight, bias, target, pixels, _ = draw(
        generator, 1, 8, classes, (4, 12), channels_last=channels_last, device=place
    )
    target[target == -100] = 0
    for own_weight in (1.0, 0.0):
        pixels[0, 2, 4:7] = torch.tensor([0.0, own_weight, 0.0])
        grads = []
        for given in (0.0, value):
            x = features.clone()
            x[0, 3, 2, 5] = given
            x.requires_grad_()
            loss = head_cross_entropy(x, weight, bias, target, pixels, relu=relu)
            grads.append(torch.autograd.grad(loss, x)[0])
        assert not loss.isfinite()
        slow = x.detach().requires_grad_()
        truth = reference.head_cross_entropy(slow, weight, bias, target, pixels, relu=relu)
        assert not truth.isfinite()
        finite = torch.autograd.grad(truth, slow)[0].isfinite()
        assert torch.equal(grads[1].isfinite(), finite) and not finite[0, 3, 2, 5]
        finite[:, :, 2, 5] = False
        torch.testing.assert_close(grads[1][finite], grads[0][finite], **EXACT)


def test_empty_volumes_slices_and_shapes_of_the_weight(generator):
    features, weight, bias, target, pixels, _ = draw(generator, 2, 6, 3, (8, 9))
    loss = head_cross_entropy(features, weight, bias, target, pixels)
    torch.testing.assert_close(head_cross_entropy(features, weight[:, :, None, None], bias, target, pixels), loss)
    volume = head_cross_entropy(
        features.reshape(2, 6, 2, 4, 9), weight, bias, target.reshape(2, 2, 4, 9), pixels.reshape(2, 2, 4, 9)
    )
    torch.testing.assert_close(volume, loss)
    wide_features = torch.cat([features, features], 1).repeat_interleave(2, 3)
    for view in (wide_features[:, 3:9, :, ::2], wide_features.to(memory_format=torch.channels_last)[:, 3:9, :, ::2]):
        torch.testing.assert_close(
            head_cross_entropy(view, weight, bias, target), reference.head_cross_entropy(view, weight, bias, target)
        )
    empty = features[:0].clone().requires_grad_()
    weight.requires_grad_()
    loss = head_cross_entropy(empty, weight, bias, target[:0])
    loss.backward()
    assert loss == 0 and empty.grad.shape == empty.shape and weight.grad.eq(0).all()


@needs("threads")
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_does_not_depend_on_the_number_of_threads(channels_last, generator):
    features, weight, bias, target, pixels, _ = draw(generator, 2, 24, 3, (70, 90), channels_last=channels_last)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            results.append(
                torch.ops.unet_fast.head_cross_entropy(
                    features, None, True, weight, bias, target, pixels, -100, 2, True
                )
            )
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_gradients_of_leaves_do_not_share_memory(generator):
    features, weight, bias, target, *_ = draw(generator, 1, 4, 2, (5, 5))
    weight.requires_grad_()
    loss = head_cross_entropy(features, weight, bias, target)
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


@needs("numeric")
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck_and_registration(channels_last, generator):
    features, weight, bias, target, pixels, extra = draw(
        generator, 2, 3, 3, (3, 4), dtype=torch.float64, channels_last=channels_last
    )
    leaves = [t.requires_grad_() for t in (features, weight, bias, extra)]
    assert torch.autograd.gradcheck(
        lambda f, w, b, e: head_cross_entropy(f, w, b, target, pixels, relu=True, feature_bias=e), leaves
    )
    op = torch.ops.unet_fast.head_cross_entropy.default
    opcheck(op, (features, extra, True, weight, bias, target, pixels, -100, 2, True))
    opcheck(op, (features.detach(), None, False, weight.detach(), None, target, None, -100, 1, False))


@needs("compiler")
def test_compiles_and_second_derivative_raises(generator):
    features, weight, bias, target, pixels, extra = draw(generator, 1, 4, 2, (6, 5))
    features.requires_grad_()

    def loss(x):
        return head_cross_entropy(x * 2, weight, bias, target, pixels, relu=True, feature_bias=extra)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(loss(features), features)
    torch.testing.assert_close(torch.autograd.grad(compiled(features), features), want)
    with pytest.raises(InputError, match="head_cross_entropy has no second derivative"):
        torch.autograd.grad(loss(features), features, create_graph=True)
    with use_backend("reference"):
        torch.testing.assert_close(torch.autograd.grad(loss(features), features, create_graph=True), want)


@needs("host")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": torch.zeros(2, 3)}, InputError, "features has 2 dimensions"),
        ({"weight": torch.zeros(1, 3)}, InputError, r"weight has shape \(1, 3\), expected \(K, 3\)"),
        ({"weight": torch.zeros(2, 3, 3, 3)}, InputError, r"weight has shape \(2, 3, 3, 3\)"),
        ({"bias": torch.zeros(3)}, InputError, r"bias has shape \(3,\), expected \(2,\)"),
        ({"target": torch.zeros(1, 4, 5).long()}, InputError, r"target has shape \(1, 4, 5\), expected \(1, 4, 4\)"),
        ({"target": torch.zeros(1, 4, 4)}, InputTypeError, "target has dtype float32"),
        ({"target": torch.full((1, 4, 4), 2)}, InputError, "target contains 2, expected classes 0 to 1"),
        ({"pixel_weight": torch.zeros(1, 4)}, InputError, r"pixel_weight has shape \(1, 4\)"),
        ({"pixel_weight": torch.zeros(1, 4, 4).requires_grad_()}, InputError, "pixel_weight requires gradients"),
        ({"feature_bias": torch.zeros(3)}, InputError, "without relu=True"),
        ({"reduction": "none"}, InputError, "reduction is 'none', expected one of 'sum'"),
        ({"ignore_index": 1.5}, InputTypeError, "ignore_index is 1.5"),
    ],
)
def test_bad_input(changes, error, message):
    given = {
        "features": torch.zeros(1, 3, 4, 4),
        "weight": torch.zeros(2, 3),
        "bias": None,
        "target": torch.zeros(1, 4, 4).long(),
    } | changes
    with pytest.raises(error, match=message):
        head_cross_entropy(**given)


@needs("host")
@pytest.mark.parametrize("shape", [(9, 4), (2, 257)])
def test_what_does_not_fit_a_gpu_is_a_product_and_the_loss(shape, generator):
    from unet_fast.reference.head_cross_entropy import head_logits

    k, c = shape
    assert not fits_registers(k, c, torch.float32) and fits_registers(8, 256, torch.bfloat16)
    features, weight, bias, target, pixels, extra = draw(generator, 1, c, k, (4, 5))
    logits = head_logits(features, weight, bias, target != -100, True, extra)
    expected = F.cross_entropy(logits, target, reduction="none").mul(pixels).sum() / (target != -100).sum()
    got = head_cross_entropy(features, weight, bias, target, pixels, relu=True, feature_bias=extra)
    torch.testing.assert_close(got, expected, **CROSS_ENTROPY[torch.float32])
