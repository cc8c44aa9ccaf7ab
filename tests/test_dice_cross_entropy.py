"""dice_cross_entropy against MONAI's loss, torch's cross-entropy and the formula in float64: targets, options, layouts, bad input."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unet_fast as uf
from tests.fuzz.drawing import lay_out
from tests.places import has, needs, only, opcheck
from tests.tolerances import CROSS_ENTROPY, DICE_GRADIENT
from unet_fast import reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import dice_cross_entropy

pytestmark = pytest.mark.kernels

FORMS = ("map", "channel", "one_hot", "soft", "ignored")


def draw(
    generator: torch.Generator, classes: int, form: str, size: tuple[int, ...] = (13, 22)
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, a target of this form and weights."""
    logits = 3 * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, max(classes, 2), (2, *size), generator=generator)
    weight = torch.rand(2, *size, generator=generator) * 2
    if form == "channel":
        return logits, target.unsqueeze(1), weight.unsqueeze(1)
    if form == "one_hot":
        return logits, F.one_hot(target, max(classes, 2)).movedim(-1, 1)[:, -classes:], weight
    if form == "soft":
        return logits, torch.rand(logits.shape, generator=generator), weight
    if form == "ignored":
        target[:, 2:5] = 255
        logits[:, :, 3] = torch.nan
        weight[:, 4] = torch.nan
    return logits, target, weight


def exact(logits: Tensor, target: Tensor, weight: Tensor | None, sigmoid: bool, over: str, background: bool, smoothing: float,
          class_weight: Tensor | None) -> Tensor:  # fmt: skip
    """The formula, over counted pixels only, with a loop over images and classes."""
    classes = logits.shape[1]
    images, costs, numbers = [], [], []
    v = torch.ones(classes, dtype=torch.float64) if class_weight is None else class_weight.double()
    for i in range(len(logits)):
        x = logits[i].double().flatten(1)
        w = torch.ones(x.shape[1], dtype=torch.float64) if weight is None else weight[i].double().flatten()
        if (
            target.dim() == logits.dim()
            and target.shape[1] == classes
            and (classes > 1 or target.dtype.is_floating_point)
        ):
            t, keep = target[i].double().flatten(1), torch.ones(x.shape[1], dtype=torch.bool)
            number = torch.ones(x.shape[1], dtype=torch.float64)
        else:
            labels = target[i].flatten().long()
            keep = labels != 255
            t = torch.stack([labels == k for k in range(classes)]) if classes > 1 else (labels == 1)[None]
            t = t.double()
            number = (t * v[:, None]).sum(0) if classes > 1 else torch.ones_like(w)
        x, t, w, number = x[:, keep], t[:, keep], w[keep], number[keep]
        p = x.sigmoid() if sigmoid else x.softmax(0)
        images.append(torch.stack([(w * p * t).sum(1), (w * p).sum(1), (w * t).sum(1)]))
        if sigmoid:
            cost = (1 - t) * F.softplus(x) + v[:, None] * t * F.softplus(-x)
            numbers.append(torch.tensor(float(cost.numel())))
        else:
            cost = -v[:, None] * ((1 - smoothing) * t + smoothing / classes) * x.log_softmax(0)
            numbers.append(number.sum())
        costs.append((w * cost).sum())
    regions = torch.stack(images)
    both, predicted, true = (regions.sum(0, keepdim=True) if over == "batch" else regions).unbind(1)
    dice = 1 - (2 * both + 1e-5) / (predicted + true + 1e-5)
    first = 0 if background or classes == 1 else 1
    dice = dice[:, first:] * (v[first:] if classes - first > 1 else 1)
    return dice.mean() + sum(costs) / sum(numbers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("classes", "sigmoid"), [(1, True), (2, False), (5, False), (3, True)])
def test_agrees_with_the_formula(classes, sigmoid, form, place, generator):
    """In every dtype and layout, with all options drawn; gradients too."""
    cases = (
        (torch.float32, "dense"), (torch.float64, "channels_last"), (torch.bfloat16, "slice"), (torch.float16, "transposed"),
        (torch.float32, "channels_last_slice"),
    )  # fmt: skip
    # where a launch takes long, one of them for each form and activation
    for dtype, layout in cases if has("speed") else [cases[(FORMS.index(form) + classes) % 5]]:
        logits, target, weight = draw(generator, classes, form)
        over, background = (
            ["sample", "batch"][int(torch.randint(2, (), generator=generator))],
            bool(torch.randint(2, (), generator=generator)),
        )
        weighted, smoothing = bool(torch.randint(2, (), generator=generator)), 0.0 if sigmoid else 0.2
        class_weight = torch.rand(classes, generator=generator) + 0.1 if weighted else None
        given = weight if weighted or form == "ignored" else None
        x = lay_out(logits.to(dtype), layout).to(place).requires_grad_()
        value = dice_cross_entropy(
            x, lay_out(target, layout).to(place), None if given is None else given.to(place), over=over, include_background=background,
            activation="sigmoid" if sigmoid else None, label_smoothing=smoothing, ignore_index=255,
            class_weight=None if class_weight is None else class_weight.to(place),
        )  # fmt: skip
        leaf = logits.to(dtype).double().requires_grad_()
        truth = exact(leaf, target, given, sigmoid, over, background, smoothing, class_weight)
        assert value.dtype == torch.promote_types(dtype, torch.float32) and value.dim() == 0
        torch.testing.assert_close(value.cpu().double(), truth, **CROSS_ENTROPY[dtype])
        grad, its = (torch.autograd.grad(3 * loss, tensor)[0] for loss, tensor in ((value, x), (truth, leaf)))
        its = its.nan_to_num(0) if form == "ignored" else its
        assert grad.dtype == dtype
        assert (grad.cpu().double() - its).abs().max() <= DICE_GRADIENT[dtype] * its.abs().max()


@pytest.mark.parametrize("classes", [1, 2])
def test_every_integer_is_the_same_target(classes, place, generator):
    logits, target, _ = draw(generator, classes, "map", (5, 6, 7))
    logits = logits.to(place)
    value = dice_cross_entropy(logits, target.to(place))
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(dice_cross_entropy(logits, target[:, None].to(dtype).to(place)), value), dtype


@needs("host")
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_the_value_is_that_of_monai(classes, background, batch, generator):
    """In 2-D and 3-D, class maps and one-hot targets, with class weights: to 2e-6, gradients to 2e-6 of the largest."""
    losses = pytest.importorskip("monai.losses")
    weight = torch.rand(classes, generator=generator) + 0.5 if classes > 1 else None
    ours = uf.nn.DiceCELoss(over="batch" if batch else "sample", include_background=background, class_weight=weight)
    for size, one_hot in (((33, 41), False), ((9, 10, 11), False), ((20, 16), True)):
        x, target, _ = draw(generator, classes, "one_hot" if one_hot else "channel", size)
        x = x.float().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one channel, which has no background
            theirs = losses.DiceCELoss(
                sigmoid=classes == 1, softmax=classes > 1, to_onehot_y=classes > 1 and not one_hot, batch=batch,
                include_background=background, weight=weight,
            )  # fmt: skip
            expected = theirs(x, target.float())
        value = ours(x, target)
        assert abs(value.item() - expected.item()) <= 2e-6 * expected.item()
        grad, its = torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0]
        assert (grad - its).abs().max() <= 2e-6 * its.abs().max()


@needs("host")
def test_cross_entropy_alone_is_that_of_torch(generator):
    logits, target, weight = draw(generator, 4, "map")
    options = {"weight": torch.rand(4, generator=generator, dtype=torch.float64) + 0.1, "label_smoothing": 0.3}
    for reduction in ("mean", "sum"):
        mine = dice_cross_entropy(
            logits, target, lambda_dice=0.0, class_weight=options["weight"], label_smoothing=0.3, reduction=reduction
        )
        torch.testing.assert_close(mine, F.cross_entropy(logits, target, reduction=reduction, **options))
    soft = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(dice_cross_entropy(logits, soft, lambda_dice=0.0), F.cross_entropy(logits, soft))
    plain = uf.ops.weighted_cross_entropy(logits, target, weight)
    torch.testing.assert_close(dice_cross_entropy(logits, target, weight, lambda_dice=0.0), plain)


def test_small_gradients_keep_their_digits(place, generator):
    """Where the network is right and sure: 1 - p has no digits left in float32, the gradient has."""
    target = torch.randint(0, 3, (1, 16, 18), generator=generator)
    logits = 12.0 * F.one_hot(target, 3).movedim(-1, 1) + torch.randn(1, 3, 16, 18, generator=generator)
    x, leaf = logits.to(place).requires_grad_(), logits.double().requires_grad_()
    (grad,) = torch.autograd.grad(dice_cross_entropy(x, target.to(place)), x)
    (truth,) = torch.autograd.grad(reference.dice_cross_entropy(leaf, target), leaf)
    assert truth.abs().max() < 1e-4
    assert (grad.cpu() - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_extremes(place):
    """Infinite differences of logits, empty masks, everything ignored, no images: finite numbers, and no gradient where nothing is."""
    right = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5).to(place)
    zeros = torch.zeros(1, 4, 5, dtype=torch.int64, device=place)
    assert dice_cross_entropy(right, zeros).item() == 0
    assert dice_cross_entropy(right.flip(1), zeros, include_background=False).item() == pytest.approx(401, abs=1e-3)
    x = right.clone().requires_grad_()
    value = dice_cross_entropy(x, zeros - 100, include_background=False, smooth_nr=0.0, smooth_dr=0.0)
    value.backward()
    assert value.item() == 0 and x.grad.eq(0).all()
    none = torch.zeros(0, 2, 4, 5, device=place, requires_grad=True)
    dice_cross_entropy(none, zeros[:0]).backward()
    assert none.grad.shape == none.shape
    nan = right.clone()
    nan[0, 0, 0, 0] = torch.nan
    assert dice_cross_entropy(nan, zeros).isnan()


@needs("threads")
def test_the_number_of_threads_changes_nothing(generator):
    logits, target, weight = draw(generator, 3, "map", (200, 210))
    x = logits.float().requires_grad_()
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        value = dice_cross_entropy(x, target, weight)
        results.append((value, *torch.autograd.grad(value, x)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@needs("host")
@pytest.mark.parametrize("scale", [0.5, 30.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sigmoid_over_several_blocks(channels, scale, generator):
    """Plain, weighted and partly ignored pixels, targets in their own memory and out of it; small losses keep their digits."""
    size = (2, channels, 61, 83)  # no multiple of anything
    mask = torch.rand(size, generator=generator).gt(0.7)
    logits = (scale * (2 * mask - 1) * torch.rand(size, generator=generator).add(0.5)).float()
    ignored = mask.float()
    ignored[1, :, 40:] = -100 if channels == 1 else 0.5  # only in some of the blocks
    weight = torch.rand(size[0], *size[2:], generator=generator)
    gaps = torch.zeros(2, channels + 2, *size[2:])[:, 1:-1].copy_(mask)
    for target in (mask, mask.float(), gaps, ignored, mask.float() * 0.9):
        for given in (None, weight):
            for lambdas in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
                options = {"lambda_dice": lambdas[0], "lambda_ce": lambdas[1], "activation": "sigmoid"}
                x, leaf, before = logits.clone().requires_grad_(), logits.double().requires_grad_(), target.clone()
                value = dice_cross_entropy(x, target, given, **options)
                truth = reference.dice_cross_entropy(leaf, target, given, **options)
                # 1 less a Dice coefficient of nearly 1 has the digits of 1
                assert abs(value.item() - truth.item()) <= 2e-6 * truth.item() + 1e-7 * lambdas[0]
                grad, its = torch.autograd.grad(value, x)[0], torch.autograd.grad(truth, leaf)[0]
                assert (grad - its).abs().max() <= 1e-5 * its.abs().max()
                assert torch.equal(x, logits) and torch.equal(target, before)


@needs("numeric")
def test_the_sums_are_registered(generator):
    logits, target, weight = draw(generator, 3, "map", (4, 5))
    arguments = (logits.requires_grad_(), target, weight.double(), None, 255, 0.1, False, True)
    opcheck(torch.ops.unet_fast.region_sums.default, arguments)
    call = lambda x: torch.ops.unet_fast.region_sums(x, *arguments[1:])  # noqa: E731
    assert torch.autograd.gradcheck(lambda x: [call(x)[i] for i in (0, 1, 3)], logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("classes", "sigmoid", "size", "form"),
    [(130, None, (3, 5), "soft"), (67, "sigmoid", (1, 1), "map"), (3, None, (1, 1), "map")],
)
def test_many_classes_and_few_pixels(classes, sigmoid, size, form, dtype, place, generator):
    """More classes than a tile holds; one pixel; classes of weight 0; every number against the reference."""
    logits, target, weight = draw(generator, classes, form, size)
    class_weight = torch.rand(classes, generator=generator)
    class_weight[::3] = 0
    options = {"activation": sigmoid, "label_smoothing": 0.0 if sigmoid else 0.3, "include_background": False}
    x, leaf = logits.to(dtype).to(place).requires_grad_(), logits.to(dtype).double().requires_grad_()
    target, weight = target.to(dtype) if form == "soft" else target, weight.to(dtype)
    value = dice_cross_entropy(x, target.to(place), weight.to(place), class_weight=class_weight.to(place), **options)
    truth = reference.dice_cross_entropy(leaf, target, weight, class_weight=class_weight.to(dtype), **options)
    torch.testing.assert_close(value.cpu().double(), truth, **CROSS_ENTROPY[dtype])
    grad, its = torch.autograd.grad(value, x)[0].cpu(), torch.autograd.grad(truth, leaf)[0]
    assert (grad - its).abs().max() <= DICE_GRADIENT[dtype] * its.abs().max()


@only("cuda", "emulated", "interpreted")
def test_a_label_that_is_no_class_is_not_lost(place):
    """Where nobody waits for the kernel to look at the targets: NaN, with Dice or cross-entropy alone as well."""
    logits, label = torch.zeros(2, 3, 4, 5, device=place), torch.zeros(2, 4, 5, dtype=torch.int64, device=place)
    label[1, 2, 3] = 3
    soft = torch.zeros(2, 3, 4, 5, device=place)
    soft[0, 1, 2, 3] = 1.5
    for target in (label, soft):
        for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
            value = dice_cross_entropy(logits, target, lambda_dice=weights[0], lambda_ce=weights[1])
            assert value.isnan(), (weights, target.dtype)


X, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


@needs("host")
@pytest.mark.parametrize(
    ("logits", "target", "options", "error", "message"),
    [
        (X.long(), T, {}, InputTypeError, "logits has dtype int64"),
        (X, T[:, 1:], {}, InputError, r"target has shape \(2, 3, 5\), expected \(2, 4, 5\) or \(2, 1, 4, 5\).*the truth of each class"),
        (X, T.float(), {}, InputTypeError, "logits with 3 classes expect an integer class map; pass target.long"),
        (X, T + 3, {}, InputError, "target contains 3, expected classes 0 to 2 or ignore_index"),
        (X[:, :1], T + 2, {}, InputError, "target contains 2, expected classes 0 to 1 .*one channel tells two classes"),
        (X, X + 2, {}, InputError, "target contains 2, expected probabilities, 0 to 1"),
        (X, T, {"activation": "tanh"}, InputError, "activation is 'tanh', expected one of 'softmax', 'sigmoid'"),
        (X[:, :1], T, {"activation": "softmax"}, InputError, "have one channel, expected at least two for a softmax"),
        (X, T, {"weight": T}, InputTypeError, "weight has dtype int64"),
        (X, T, {"class_weight": torch.ones(2)}, InputError, r"class_weight has shape \(2,\), expected \(3,\)"),
        (X, T, {"label_smoothing": 1.5}, InputError, "label_smoothing is 1.5, expected a number of at least 0, at most 1"),
        (X, T, {"label_smoothing": 0.1, "activation": "sigmoid"}, InputError, "label_smoothing belongs to a softmax"),
        (X, T, {"lambda_ce": -1}, InputError, "lambda_ce is -1, expected a number of at least 0"),
        (X, T, {"smooth_dr": "1"}, InputTypeError, "smooth_dr is '1', expected a number"),
        (X, T, {"over": "pixels"}, InputError, "over is 'pixels', expected one of 'sample', 'batch'"),
        (X, T, {"reduction": "none"}, InputError, "reduction is 'none', expected one of 'mean', 'sum'"),
        (X, T, {"include_background": 0}, InputTypeError, "include_background is 0, expected True or False"),
        (X, T, {"ignore_index": None}, InputTypeError, "ignore_index is None, expected an integer"),
        (X, X.requires_grad_(), {}, InputError, "target requires gradients"),
    ],
)  # fmt: skip
def test_bad_input(logits, target, options, error, message):
    with pytest.raises(error, match=message):
        dice_cross_entropy(logits.detach(), target, **options)
