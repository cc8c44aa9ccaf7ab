"""The kernels of bias_relu, relu_pool_skip and conv_bias_relu for GPUs below the public functions, against the C++ ones."""

from __future__ import annotations

import pytest
import torch

from tests.places import needs, only
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT
from unet_fast import reference
from unet_fast.ops import bias_relu, conv_bias_relu, relu_pool_skip, use_backend

pytestmark = [pytest.mark.kernels, only("emulated", "interpreted")]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def draw(generator, *shape, dtype, last):
    tensor = torch.randn(shape, generator=generator).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


SMALL = [
    ((2, 3, 7, 5), (4, 4), 2),
    ((1, 4, 6, 70), (3, 64), 4),
    ((1, 2, 2, 2), (1, 1), 1),
    ((1, 2, 12, 40), (8, 32), 2),
]
LARGE = [
    ((2, 16, 24, 32), (16, 24), 16),  # whole vectors everywhere
    ((1, 8, 22, 24), (10, 16), 8),  # a crop that starts 4 columns in: halves of bfloat16 vectors
    ((1, 16, 17, 40), (9, 7), 3),  # an odd height, a crop between vectors, a buffer that is no whole vector
    ((2, 5, 9, 15), (9, 15), 0),
    ((1, 3, 2, 2), (1, 1), 1),
    ((1, 40, 70, 66), (1, 66), 8),  # many strips and chunks
]


@pytest.mark.parametrize(
    ("shape", "crop", "up", "dtype", "last"),
    # without speed the small ones, each with every dtype, in both layouts, and every dtype in both
    [pytest.param(*shapes, dtype, last, marks=needs("speed") if (i + j + last) % 2 else ())
     for i, shapes in enumerate(SMALL) for j, dtype in enumerate(DTYPES) for last in (False, True)]
    + [pytest.param(*shapes, dtype, last, marks=needs("speed"))
       for shapes in LARGE for dtype in DTYPES for last in (False, True)],
)  # fmt: skip
def test_every_path_has_the_bits_of_the_cpu(shape, crop, up, dtype, last, kernels, generator):
    ops, (_, c, *size) = torch.ops.unet_fast, shape
    x, bias = draw(generator, *shape, dtype=dtype, last=last), torch.randn(c, generator=generator).to(wide(dtype))
    x[0, 0, 0, 1], x[0, -1, 1, 0] = float("nan"), float("inf")
    for b in (bias, None):
        pooled, buffer, code = kernels.relu_pool_skip(x, b, crop, up, True)
        truth = ops.relu_pool_skip(x, b, crop, up, True)
        torch.testing.assert_close((pooled, buffer, code), truth, **EXACT, equal_nan=True)
        assert kernels.relu_pool_skip(x, b, crop, up, False)[2].numel() == 0
    grads = [draw(generator, *tensor.shape, dtype=dtype, last=last) for tensor in (pooled, buffer)]
    grads[1][:, c:] = float("nan")  # nobody reads there
    for given in (grads, [grads[0], None], [None, grads[1]]):
        got, sums = kernels.relu_pool_skip_backward(code, *given, size, True)
        expected, expected_sums = ops.relu_pool_skip_backward(code, *given, size, True)
        torch.testing.assert_close(got, expected, **EXACT)
        torch.testing.assert_close(sums, expected_sums, **CHANNEL_SUM[dtype])
        again = kernels.relu_pool_skip_backward(code, *given, size, True)
        torch.testing.assert_close(again, (got, sums), **EXACT)
        alone, none = kernels.relu_pool_skip_backward(code, *given, size, False)
        torch.testing.assert_close(alone, expected, **EXACT)
        assert none.numel() == 0


@only("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_slices(dtype, kernels, generator):
    """Strides that are no multiples of a vector, addresses in the middle of one, an expanded gradient."""
    for last in (False, True):
        x = draw(generator, 2, 16, 12, 16, dtype=dtype, last=last)
        code = torch.ops.unet_fast.relu_pool_skip(x, None, [8, 8], 0, True)[2]
        pooled = draw(generator, 2, 17, 7, 9, dtype=dtype, last=last)[:, 1:, 1:, 1:]
        buffer = draw(generator, 2, 20, 9, 9, dtype=dtype, last=last)[:, 3:, 1:, :8]
        for given in ((pooled, buffer), (pooled[:1].expand(2, -1, -1, -1), buffer.transpose(2, 3)), (None, buffer)):
            got = kernels.relu_pool_skip_backward(code, *given, [12, 16], True)
            expected = torch.ops.unet_fast.relu_pool_skip_backward(code, *given, [12, 16], True)
            torch.testing.assert_close(got[0], expected[0], **EXACT)
            torch.testing.assert_close(got[1], expected[1], **CHANNEL_SUM[dtype])


@only("emulated")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 12, 16), (3, 5, 7, 9), (1, 2, 1, 3), (2, 24, 33, 35), (1, 300, 4, 4)])
def test_bias_and_relu_have_the_bits_of_the_cpu(shape, dtype, last, kernels, generator):
    """Planes that start and end in the middle of vectors, planes smaller than one, more channels than a block is wide."""
    ops = torch.ops.unet_fast
    x, grad = (draw(generator, *shape, dtype=dtype, last=last) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator).to(wide(dtype))
    x[0, 0, 0, 0] = float("nan")
    for b in (bias, None):
        out, expected = kernels.bias_relu(x, b), ops.bias_relu(x, b)
        torch.testing.assert_close(out, expected, **EXACT, equal_nan=True)
        in_place = x.clone()
        kernels.bias_relu_(in_place, b)
        torch.testing.assert_close(in_place, expected, **EXACT, equal_nan=True)
        for want in (True, False):
            got, truth = kernels.bias_relu_backward(grad, out, want), ops.bias_relu_backward(grad, out, want)
            torch.testing.assert_close(got[0], truth[0], **EXACT)
            torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[dtype])
            assert got[1].shape == (shape[1] if want else 0,)
    whole = draw(generator, 3, shape[1] + 1, *shape[2:], dtype=dtype, last=last)
    for part in (whole[1:, 1:], whole[1:]):  # not dense, and dense but perhaps not at the start of a vector
        expected = ops.bias_relu(part, None)
        torch.testing.assert_close(kernels.bias_relu(part, None), expected, **EXACT)
        kernels.bias_relu_(part, None)
        torch.testing.assert_close(part, expected, **EXACT)


@only("emulated")
def test_many_pixels_and_the_same_bits_in_every_run(kernels, generator):
    """More pixels than a strip has steps for, so that strips are as long as they get, and many partial sums."""
    for last in (False, True):
        grad, out = (draw(generator, 2, 3 if last else 1, 700, 701, dtype=torch.float32, last=last) for _ in range(2))
        first, again = (kernels.bias_relu_backward(grad, out.relu(), True) for _ in range(2))
        torch.testing.assert_close(first, again, **EXACT)
        torch.testing.assert_close(first[1].double(), first[0].double().sum((0, 2, 3)), **CHANNEL_SUM[torch.float32])


@only("emulated")
@pytest.mark.parametrize("wants", [(True, True, True), (True, False, True), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_convolution_through_the_dispatcher(dtype, wants, kernels, generator):
    x, weight = (
        draw(generator, 2, 5, 9, 8, dtype=dtype, last=False),
        draw(generator, 7, 5, 3, 3, dtype=dtype, last=False),
    )
    bias = torch.randn(7, generator=generator).to(wide(dtype))
    for b, padding in ((bias, 1), (None, 0)):
        out = kernels.conv_bias_relu(x, weight, b, padding)
        truth = torch.ops.unet_fast.conv_bias_relu(x, weight, b, padding)
        torch.testing.assert_close(out, truth, **CONVOLUTION[dtype])
        grad = draw(generator, *out.shape, dtype=dtype, last=False)
        got = kernels.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
        expected = torch.ops.unet_fast.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
        for one, other, wanted in zip(got, expected, wants, strict=True):
            assert one.numel() > 0 if wanted else one.numel() == 0
            torch.testing.assert_close(one, other, **CONVOLUTION[dtype])


@only("emulated")
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_first_layer(dtype, channels, kernels, generator):
    """Channels-last and few channels: kernels of their own but for 5 channels, float64, and features no vector divides."""
    for features, batch, side, padding in ((8, 2, 9, 0), (24, 1, 12, 1), (264, 1, 4, 0), (12, 2, 8, 1), (16, 0, 8, 1)):
        whole = draw(generator, batch + 1, channels + 1, side + 1, side + 3, dtype=dtype, last=True)
        whole = whole.contiguous(memory_format=torch.channels_last)
        weight = draw(generator, features, channels, 3, 3, dtype=dtype, last=True)
        bias = torch.randn(features, generator=generator).to(wide(dtype))
        for x in (whole[1:, 1:, 1:, 2:], whole[1:, 1:, 1:, 2:].contiguous()):
            for b in (bias, None):
                out = kernels.conv_bias_relu(x, weight, b, padding)
                truth = torch.ops.unet_fast.conv_bias_relu(x, weight, b, padding)
                torch.testing.assert_close(out, truth, **CONVOLUTION[dtype])
                assert out.stride() == truth.stride() or batch == 0
            flat = torch.randn(out.numel() + 1, generator=generator).to(dtype)[1:]  # not at the start of a vector
            grad = flat.view(out.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
            for wants in ((False, True, True), (False, True, False), (True, True, True)):
                got = kernels.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
                expected = torch.ops.unet_fast.conv_bias_relu_backward(grad, x, weight, out, padding, *wants)
                for one, other in zip(got, expected, strict=True):
                    torch.testing.assert_close(one, other, **CONVOLUTION[dtype])


@only("emulated")
def test_first_layer_of_many_pixels(kernels, generator):
    """Strips of many pixels and many partial sums; the same bits in every run."""
    x, weight = (draw(generator, *shape, dtype=torch.float32, last=True) for shape in ((2, 3, 260, 301), (8, 3, 3, 3)))
    out = kernels.conv_bias_relu(x, weight, None, 1)
    grad = draw(generator, *out.shape, dtype=torch.float32, last=True)
    first, again = (kernels.conv_bias_relu_backward(grad, x, weight, out, 1, False, True, True) for _ in range(2))
    torch.testing.assert_close(first, again, **EXACT)
    masked = (grad * (out > 0)).double()
    torch.testing.assert_close(first[2].double(), masked.sum((0, 2, 3)), **CHANNEL_SUM[torch.float32])
    truth = torch.nn.grad.conv2d_weight(x.double(), weight.shape, masked, padding=1)
    torch.testing.assert_close(first[1].double(), truth, rtol=1e-5, atol=1e-3)


def test_slices(kernels, generator):
    """Strides and crops that no vector divides, and layouts that have to be copied."""
    ops = torch.ops.unet_fast
    base = draw(generator, 2, 8, 12, 18, dtype=torch.float32, last=False)
    last = base.contiguous(memory_format=torch.channels_last)
    for x in (base[:, 3:6, 1:10, 2:15], last[:, 3:6, 1:10, 2:15], base[:, :2].transpose(2, 3), last[:, ::4]):
        size = list(x.shape[2:])
        got = kernels.relu_pool_skip(x, None, [5, 7], 0, True)
        torch.testing.assert_close(got, ops.relu_pool_skip(x, None, [5, 7], 0, True), **EXACT)
        grads = x[:, :, : size[0] // 2, : size[1] // 2], x[:, :, :5, :7].transpose(2, 3).reshape(*x.shape[:2], 5, 7)
        result = kernels.relu_pool_skip_backward(got[2], *grads, size, True)
        expected = ops.relu_pool_skip_backward(got[2], *grads, size, True)
        torch.testing.assert_close(result[0], expected[0], **EXACT)
        torch.testing.assert_close(result[1], expected[1], **CHANNEL_SUM[torch.float32])
        torch.testing.assert_close(kernels.bias_relu(x, None), ops.bias_relu(x, None), **EXACT)


def test_empty(kernels):
    for shape in ((0, 4, 6, 6), (2, 0, 6, 6)):
        x = torch.zeros(shape)
        pooled, buffer, code = kernels.relu_pool_skip(x, None, [4, 4], 3, True)
        assert pooled.shape == (*shape[:2], 3, 3) and buffer.shape == (shape[0], shape[1] + 3, 4, 4)
        grad_x, grad_bias = kernels.relu_pool_skip_backward(code, pooled, buffer, [6, 6], True)
        assert grad_x.shape == shape and grad_bias.tolist() == [0.0] * shape[1]
        assert kernels.bias_relu(x, None).shape == shape
        assert kernels.bias_relu_backward(x, x, True)[1].tolist() == [0.0] * shape[1]


@only("interpreted")
def test_tiles_and_parts(monkeypatch, kernels, generator):
    """Tiles much smaller than the image: several along each side, and more partial sums than add_parts takes at once."""
    from unet_fast.triton import bias_relu as bias_relu_kernels
    from unet_fast.triton import relu_pool_skip as pool_kernels

    monkeypatch.setattr(bias_relu_kernels, "_TILE", 16)
    monkeypatch.setattr(bias_relu_kernels, "_WIDEST", 8)
    monkeypatch.setattr(pool_kernels, "_WINDOWS", 32)
    monkeypatch.setattr(pool_kernels, "_MOST_CHANNELS", 4)
    ops = torch.ops.unet_fast
    for last in (False, True):
        x = draw(generator, 2, 5, 9, 19, dtype=torch.float32, last=last)
        bias = torch.randn(5, generator=generator)
        out = kernels.bias_relu(x, bias)
        torch.testing.assert_close(out, ops.bias_relu(x, bias), **EXACT)
        got, truth = kernels.bias_relu_backward(x, out, True), ops.bias_relu_backward(x, out, True)
        torch.testing.assert_close(got[0], truth[0], **EXACT)
        torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[torch.float32])
        results = kernels.relu_pool_skip(x, bias, [5, 12], 1, True)
        torch.testing.assert_close(results, ops.relu_pool_skip(x, bias, [5, 12], 1, True), **EXACT, equal_nan=True)
        grads = results[0] + 1, results[1].nan_to_num()
        got = kernels.relu_pool_skip_backward(results[2], *grads, [9, 19], True)
        truth = ops.relu_pool_skip_backward(results[2], *grads, [9, 19], True)
        torch.testing.assert_close(got[0], truth[0], **EXACT)
        torch.testing.assert_close(got[1], truth[1], **CHANNEL_SUM[torch.float32])


@only("interpreted")
def test_all_operators_of_an_op_change_their_backend(monkeypatch, generator):
    """The in-place operator as well; and the public functions agree with the reference."""
    from unet_fast.triton import bias_relu as bias_relu_kernels

    names = []
    kernels = {
        name: lambda *arguments, name=name, run=run: (names.append(name), run(*arguments))[1]
        for name, run in bias_relu_kernels.KERNELS.items()
    }
    monkeypatch.setattr(bias_relu_kernels, "KERNELS", kernels)
    x, weight = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((1, 2, 5, 4), (3, 2, 3, 3)))
    bias = torch.randn(3, generator=generator).requires_grad_()
    with use_backend("triton"):
        in_place = x.detach().clone()
        torch.ops.unet_fast.bias_relu_(in_place, None)
        torch.testing.assert_close(in_place, x.detach().relu(), **EXACT)
        strided = x.detach().clone()[:, :, ::2]
        torch.ops.unet_fast.bias_relu_(strided, None)
        torch.testing.assert_close(strided, x.detach()[:, :, ::2].relu(), **EXACT)
        bias_relu(x).sum().backward()
        out = conv_bias_relu(x, weight, bias, padding=1)
        pooled, _ = relu_pool_skip(out, skip_size=(3, 2))
        got = torch.autograd.grad(pooled.square().sum(), (x, weight, bias))
    assert names == ["bias_relu_"] * 2 + ["bias_relu", "bias_relu_backward"]
    expected_out = reference.conv_bias_relu(x, weight, bias, padding=1)
    torch.testing.assert_close(out, expected_out, **CONVOLUTION[torch.float32])
    expected, _ = reference.relu_pool_skip(expected_out, skip_size=(3, 2))
    expected_grads = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
    torch.testing.assert_close(got, expected_grads, **CONVOLUTION[torch.float32])
