"""Losses: values against a plain reference, gradients, extreme input, compilation, modules."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import unet_fast.nn
from tests import losses_plain as plain
from tests.tolerances import BY_DTYPE, LOSS
from unet_fast.nn import losses

pytestmark = pytest.mark.core

IGNORED = plain.IGNORED

# name -> loss, reference, module; two scales, so that small images do
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], torch.nn.Module]] = {
    "bce": (losses.bce_with_logits_loss, plain.bce, losses.BCEWithLogitsLoss()),
    "inverse_frequency_bce": (
        losses.inverse_frequency_bce_loss,
        plain.inverse_frequency_bce,
        losses.InverseFrequencyBCELoss(),
    ),
    "dice": (losses.dice_loss, plain.dice, losses.DiceLoss()),
    "iou": (losses.iou_loss, plain.iou, losses.IoULoss()),
    "focal": (losses.focal_loss, plain.focal, losses.FocalLoss()),
    "ms_ssim": (lambda *a: losses.ms_ssim_loss(*a, scales=2), plain.ms_ssim, losses.MSSSIMLoss(scales=2)),
    "focal_dice": (losses.focal_dice_loss, plain.focal_dice, losses.FocalDiceLoss()),
    "focal_log_dice": (losses.focal_log_dice_loss, plain.focal_log_dice, losses.FocalLogDiceLoss()),
    "bce_dice": (losses.bce_dice_loss, plain.bce_dice, losses.BCEDiceLoss()),
    "focal_ms_ssim_iou": (
        lambda *a: losses.focal_ms_ssim_iou_loss(*a, scales=2),
        plain.focal_ms_ssim_iou,
        losses.FocalMSSSIMIoULoss(scales=2),
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
channels = pytest.mark.parametrize("num_channels", [1, 3])


def draw(
    rng: np.random.Generator, num_channels: int, size: tuple[int, ...] = (24, 23), *, soft: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits float64, target and weights of two samples; NaN lies where the target is ignored."""
    logits = rng.normal(size=(2, num_channels, *size)) * 2
    target = rng.uniform(size=(2, *size)) if soft else rng.integers(0, max(num_channels, 2), (2, *size))
    weight = rng.uniform(0.1, 3, (2, *size))
    ignored = rng.uniform(size=(2, *size)) < 0.1
    target[ignored], weight[ignored] = IGNORED, np.nan
    logits = np.where(ignored[:, None], np.nan, logits)
    return torch.from_numpy(logits), torch.from_numpy(target), torch.from_numpy(weight)


def arrays(*tensors: Tensor | None) -> list[np.ndarray | None]:
    return [None if tensor is None else tensor.double().numpy() for tensor in tensors]


@every_loss
@channels
@pytest.mark.parametrize("weighted", [False, True])
def test_values_agree_with_the_plain_reference(
    name: str, num_channels: int, weighted: bool, rng: np.random.Generator
) -> None:
    function, reference, module = LOSSES[name]
    logits, target, weight = draw(rng, num_channels)
    used = weight if weighted else None
    expected = reference(*arrays(logits, target, used))
    assert function(logits, target, used).item() == pytest.approx(expected, **LOSS[torch.float64])
    assert module(logits, target, used).item() == pytest.approx(expected, **LOSS[torch.float64])
    single = function(logits.float(), target.int(), None if used is None else used.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, **LOSS[torch.float32])


@every_loss
def test_soft_targets(name: str, rng: np.random.Generator) -> None:
    function, reference, _ = LOSSES[name]
    logits, target, weight = draw(rng, 1, soft=True)
    expected = reference(*arrays(logits, target, weight))
    assert function(logits, target, weight).item() == pytest.approx(expected, **LOSS[torch.float64])
    # a whole target may come as any dtype, with or without its channel
    whole = torch.from_numpy(rng.integers(0, 2, (2, 24, 23)))
    values = [function(logits.nan_to_num(), whole.to(dtype)) for dtype in (torch.float64, torch.bool, torch.uint8)]
    values.append(function(logits.nan_to_num(), whole.unsqueeze(1), torch.ones_like(logits)))
    for value in values:
        torch.testing.assert_close(value, values[0], **BY_DTYPE[torch.float64])


@pytest.mark.parametrize("size", [(17,), (1, 1), (5, 1, 7), (0, 3)])
@pytest.mark.parametrize("name", [name for name in LOSSES if "ssim" not in name])
def test_other_shapes(name: str, size: tuple[int, ...], rng: np.random.Generator) -> None:
    function, reference, _ = LOSSES[name]
    for num_channels in (1, 2):
        logits, target, weight = draw(rng, num_channels, size)
        target[:] = target.clamp_min(0)
        logits, weight = logits.nan_to_num(), weight.nan_to_num()
        value = function(logits, target, weight)
        assert value.isfinite()
        if 0 not in size:
            expected = reference(*arrays(logits, target, weight))
            assert value.item() == pytest.approx(expected, **LOSS[torch.float64])


@every_loss
@channels
def test_layout_does_not_matter(name: str, num_channels: int, rng: np.random.Generator) -> None:
    function = LOSSES[name][0]
    logits, target, weight = draw(rng, num_channels, (30, 29))
    expected = function(logits[:, :, 3:, 2:26], target[:, 3:, 2:26], weight[:, 3:, 2:26])
    cut = logits[:, :, 3:, 2:26].contiguous(memory_format=torch.channels_last)
    value = function(cut, target[:, 3:, 2:26].contiguous(), weight[:, 3:, 2:26].contiguous())
    torch.testing.assert_close(value, expected, **BY_DTYPE[torch.float64])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weight_mean"])
@channels
def test_reductions_of_pixel_losses(reduction: str, num_channels: int, rng: np.random.Generator) -> None:
    logits, target, weight = draw(rng, num_channels)
    alpha = torch.tensor([0.2, 0.7, 1.5][: max(num_channels, 2)], dtype=torch.float64)
    for function, reference, options, plain_options in (
        (losses.bce_with_logits_loss, plain.bce, {}, {}),
        (losses.inverse_frequency_bce_loss, plain.inverse_frequency_bce, {}, {}),
        (losses.focal_loss, plain.focal, {"alpha": alpha, "gamma": 0.9}, {"alpha": alpha.numpy(), "gamma": 0.9}),
    ):
        value = function(logits, target, weight, reduction=reduction, **options)
        if reduction == "none":
            assert value.shape == target.shape and (value[target == IGNORED] == 0).all()
            value = value.sum()
        name = "sum" if reduction == "none" else reduction
        expected = reference(*arrays(logits, target, weight), reduction=name, **plain_options)
        assert value.item() == pytest.approx(expected, **LOSS[torch.float64])


@channels
def test_options_of_region_losses(num_channels: int, rng: np.random.Generator) -> None:
    logits, target, weight = draw(rng, num_channels)
    given = arrays(logits, target, weight)
    for function, reference in ((losses.dice_loss, plain.dice), (losses.iou_loss, plain.iou)):
        for over in ("sample", "batch"):
            for background in (True, False):
                options = {"over": over, "include_background": background, "smooth": 0.3}
                value = function(logits, target, weight, **options)
                expected = reference(*given, over=over, background=background, smooth=0.3)
                assert value.item() == pytest.approx(expected, **LOSS[torch.float64])
                apart = function(logits, target, weight, reduction="none", **options)
                classes = 1 if num_channels == 1 else num_channels - (not background)
                assert apart.shape == ((2, classes) if over == "sample" else (classes,))
                total = function(logits, target, weight, reduction="sum", **options)
                torch.testing.assert_close(apart.sum(), total, **BY_DTYPE[torch.float64])
                torch.testing.assert_close(apart.mean(), value, **BY_DTYPE[torch.float64])
    background_free = losses.ms_ssim_loss(logits, target, weight, scales=1, include_background=False)
    expected = plain.ms_ssim(*given, scales=1, background=False)
    assert background_free.item() == pytest.approx(expected, **LOSS[torch.float64])
    assert losses.ms_ssim_loss(logits, target, scales=1, reduction="none").shape == (2, num_channels)


def test_focal_alpha_number_is_that_of_the_foreground(rng: np.random.Generator) -> None:
    for num_channels, soft in ((1, False), (1, True), (3, False)):
        logits, target, weight = draw(rng, num_channels, soft=soft)
        by_class = torch.tensor([0.3] + [0.7] * max(num_channels - 1, 1), dtype=torch.float64)
        expected = losses.focal_loss(logits, target, weight, alpha=by_class)
        torch.testing.assert_close(losses.focal_loss(logits, target, weight, alpha=0.7), expected)
        torch.testing.assert_close(losses.FocalLoss(alpha=by_class.tolist())(logits, target, weight), expected)
        reference = plain.focal(*arrays(logits, target, weight), alpha=by_class.numpy())
        assert expected.item() == pytest.approx(reference, **LOSS[torch.float64])


def test_given_frequencies_and_their_count(rng: np.random.Generator) -> None:
    for num_channels in (1, 3):
        logits, target, weight = draw(rng, num_channels)
        classes = max(num_channels, 2)
        counts = losses.class_counts(target, classes)
        expected = np.bincount(target.numpy()[target.numpy() != IGNORED], minlength=classes)
        assert counts.tolist() == expected.tolist()
        own = losses.inverse_frequency_bce_loss(logits, target, weight)
        torch.testing.assert_close(losses.inverse_frequency_bce_loss(logits, target, weight, frequencies=counts), own)
        given = np.array([5.0, 1.0, 0.5][:classes])
        value = losses.InverseFrequencyBCELoss(given.tolist())(logits, target, weight)
        reference = plain.bce(*arrays(logits, target, weight), frequencies=given)
        assert value.item() == pytest.approx(reference, **LOSS[torch.float32])
    assert losses.class_counts(torch.tensor([0, 0, 1, 2]), 3, ignore_index=0).tolist() == [0, 1, 1]


def test_ignore_index_inside_and_outside_the_dtype(rng: np.random.Generator) -> None:
    logits, target, _ = draw(rng, 3)
    kept = target.masked_fill(target == IGNORED, 255).to(torch.uint8)
    expected = losses.dice_loss(logits, target)
    torch.testing.assert_close(losses.dice_loss(logits, kept, ignore_index=255), expected)
    # -100 wraps to 156 in eight bits, which must not be taken for ignored
    many = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    wide = torch.randn(1, 200, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(losses.focal_loss(wide, many, gamma=0.0), F.cross_entropy(wide, many.long()))
    zero = losses.bce_with_logits_loss(logits.nan_to_num(), target.clamp_min(0), ignore_index=0, reduction="none")
    assert (zero[target <= 0] == 0).all() and (zero[target > 0] > 0).all()


def test_one_scale_is_the_ssim_of_scikit_image(rng: np.random.Generator) -> None:
    logits, target, _ = draw(rng, 1, (31, 26))
    logits, target = logits.nan_to_num(), target.clamp_min(0)
    values = losses.ms_ssim_loss(logits, target, scales=1, reduction="none")
    for i in range(2):
        expected = structural_similarity(
            logits[i, 0].sigmoid().numpy(),
            target[i].double().numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert 1 - values[i, 0].item() == pytest.approx(expected, **LOSS[torch.float64])


def test_five_scales(rng: np.random.Generator) -> None:
    # smooth maps that resemble each other, so that every scale is far from the floor
    truth = F.interpolate(torch.from_numpy(rng.normal(size=(2, 1, 9, 9))), size=(177, 190), mode="bicubic")
    logits = (truth + 0.2 * torch.from_numpy(rng.normal(size=truth.shape))) * 4
    target = (truth[:, 0] > 0).long()
    value = losses.MSSSIMLoss()(logits, target)
    assert 0.05 < value.item() < 0.9
    expected = plain.ms_ssim(*arrays(logits, target, None), scales=5)
    assert value.item() == pytest.approx(expected, **LOSS[torch.float64])
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = losses.MSSSIMLoss()(logits.float(), target)
    assert under_autocast.item() == pytest.approx(expected, **LOSS[torch.float32])


@every_loss
@channels
def test_gradcheck(name: str, num_channels: int, rng: np.random.Generator) -> None:
    function = LOSSES[name][0]
    logits, target, weight = draw(rng, num_channels)
    logits = logits.nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, target, weight), (logits,), fast_mode=True)
    (gradient,) = torch.autograd.grad(function(logits, target, weight), logits)
    assert (gradient[(target == IGNORED).unsqueeze(1).expand_as(gradient)] == 0).all()
    assert (gradient != 0).any()
    if num_channels == 1:
        soft = torch.from_numpy(rng.uniform(size=target.shape))
        assert torch.autograd.gradcheck(lambda x: function(x, soft, soft + 1), (logits,), fast_mode=True)


@every_loss
@channels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_the_extremes(name: str, num_channels: int, dtype: torch.dtype) -> None:
    function = LOSSES[name][0]
    shape = (2, 22, 24)
    last = max(num_channels, 2) - 1
    half = torch.arange(24).expand(shape) < 12
    for target in (
        torch.zeros(shape, dtype=torch.int64),
        torch.full(shape, last),
        half.long() * last,
        torch.full(shape, IGNORED),
    ):
        one_hot = torch.stack([target == k for k in range(last + 1)], 1).to(dtype)
        right = 200 * (one_hot[:, 1:] if num_channels == 1 else one_hot) - 100
        values = []
        for logits in (right, -right, torch.zeros_like(right), torch.full_like(right, 100)):
            logits = logits.clone().requires_grad_()
            value = function(logits, target)
            value.backward()
            assert value.dtype == torch.float32 and value.isfinite()
            assert logits.grad is not None and logits.grad.dtype == dtype and logits.grad.isfinite().all()
            values.append(value.item())
        if (target == IGNORED).all():
            assert values[1] == values[0] in (0, -1)
        else:
            assert values[0] < values[1] and values[0] == pytest.approx(-1 if name == "bce_dice" else 0, abs=1e-3)


@pytest.mark.parametrize("function", [losses.dice_loss, losses.iou_loss])
def test_no_smoothing_and_nothing_there_is_perfect(function: Callable[..., Tensor]) -> None:
    logits = torch.full((1, 1, 4, 4), -200.0, requires_grad=True)
    empty = torch.zeros(1, 4, 4)
    value = function(logits, empty, smooth=0.0)
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all()
    assert function(logits, empty + 1, smooth=0.0).item() == 1


# each loss once; one channel and several differ in the cross-entropies and the sums, not in what is built on them
@pytest.mark.parametrize(
    ("name", "num_channels"),
    [(name, 1 if name == "focal_ms_ssim_iou" else 3) for name in LOSSES]
    + [(name, 1) for name in ("bce", "inverse_frequency_bce", "focal_dice", "bce_dice")],
)
def test_compiles_without_graph_breaks(name: str, num_channels: int, rng: np.random.Generator) -> None:
    _, _, module = LOSSES[name]
    logits, target, weight = draw(rng, num_channels)
    logits = logits.float().requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        value = call(logits, target, weight.float())
        results.append((value.detach(), torch.autograd.grad(value, logits)[0]))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, **BY_DTYPE[torch.float32])


@every_loss
@channels
def test_no_value_is_read_back(name: str, num_channels: int, rng: np.random.Generator) -> None:
    """Fake tensors have no values: what runs on them neither synchronises nor has a shape that depends on values."""
    with FakeTensorMode() as mode:
        logits, target, weight = (mode.from_tensor(tensor) for tensor in draw(rng, num_channels))
        logits.requires_grad_()
        value = LOSSES[name][2](logits, target, weight)
        value.backward()
        assert value.shape == () and logits.grad.shape == logits.shape


@every_loss
@channels
def test_descent_finds_the_target(name: str, num_channels: int, rng: np.random.Generator) -> None:
    y, x = np.mgrid[:24, :24]
    target = torch.from_numpy(((y - 11) ** 2 + (x - 9) ** 2 < 50).astype(np.int64))[None]
    if num_channels > 1:
        target[:, 18:] = 2
    logits = torch.from_numpy(rng.normal(size=(1, num_channels, 24, 24)).astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    module = LOSSES[name][2]
    for _ in range(40):
        optimizer.zero_grad()
        module(logits, target).backward()
        optimizer.step()
    labels = logits.argmax(1) if num_channels > 1 else (logits[:, 0] > 0).long()
    inner = (labels == target)[:, 5:-5, 5:-5] if name == "ms_ssim" else labels == target  # whole windows only
    assert inner.float().mean() > 0.98


@every_loss
def test_modules_copy_and_print(name: str, rng: np.random.Generator) -> None:
    module = LOSSES[name][2]
    assert getattr(unet_fast.nn, type(module).__name__) is type(module)
    assert "ignore_index=-100" in repr(module)
    logits, target, weight = draw(rng, 1)
    again = copy.deepcopy(module).to(torch.float64)
    assert again(logits, target, weight) == module(logits, target, weight)
    assert list(module.parameters()) == []


@pytest.mark.parametrize("name", ["dice", "iou", "bce", "ms_ssim", "focal_log_dice", "focal_ms_ssim_iou"])
def test_modules_have_the_keywords_of_their_functions(name: str) -> None:
    module = type(LOSSES[name][2])
    function = getattr(losses, f"{'bce_with_logits' if name == 'bce' else name}_loss")
    keywords = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert {p.name: p.default for p in inspect.signature(module).parameters.values()} == keywords
    assert module().options == keywords
    with pytest.raises(TypeError, match="unexpected keyword argument 'smoth'"):
        module(smoth=1)
