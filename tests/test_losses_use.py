"""Deep supervision over heads of several sizes, and what the losses say to input that they cannot take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tolerances import BY_DTYPE, EXACT
from unet_fast import nn
from unet_fast.errors import InputError, InputTypeError
from unet_fast.nn import losses
from unet_fast.nn.losses.deep_supervision import nearest

EXACTLY_SIZED = [(16, 12), (16, 12), (8, 6), (5, 3)]


def draw(
    rng: np.random.Generator, num_channels: int, sizes: list[tuple[int, int]]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Heads, and target and weight of the size of the first."""
    heads = [torch.from_numpy(rng.normal(size=(2, num_channels, *size))).requires_grad_() for size in sizes]
    target = torch.from_numpy(rng.integers(0, max(num_channels, 2), (2, *sizes[0])))
    return heads, target, torch.from_numpy(rng.uniform(0.5, 2, target.shape))


def nearest_plain(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x[:, None].double(), size=size, mode="nearest-exact")[:, 0].to(x.dtype)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("resize", ["target", "logits"])
def test_weighted_sum_of_the_losses_of_the_heads(num_channels: int, resize: str, rng: np.random.Generator) -> None:
    heads, target, weight = draw(rng, num_channels, EXACTLY_SIZED)
    factors = [0.5, 0.25, 1.0, 2.0]
    module = nn.DeepSupervision(nn.FocalDiceLoss(), weights=factors, resize=resize)
    total = module(heads, target, weight)
    expected = []
    for head in heads:
        size = tuple(head.shape[2:])
        if resize == "target":
            one = losses.focal_dice_loss(head, nearest_plain(target, size), nearest_plain(weight, size))
        else:
            up = F.interpolate(head, size=target.shape[1:], mode="bilinear", align_corners=False)
            one = losses.focal_dice_loss(up, target, weight)
        expected.append(one)
    torch.testing.assert_close(module.head_losses, torch.stack(expected).detach(), **BY_DTYPE[torch.float64])
    by_hand = sum(factor * one for factor, one in zip(factors, expected, strict=True))
    torch.testing.assert_close(total, by_hand, **BY_DTYPE[torch.float64])
    assert not module.head_losses.requires_grad
    for got, wanted in zip(torch.autograd.grad(total, heads), torch.autograd.grad(by_hand, heads), strict=True):
        assert (got != 0).any()
        torch.testing.assert_close(got, wanted, **BY_DTYPE[torch.float64])


def test_each_head_counts_once_by_default_and_any_loss_will_do(rng: np.random.Generator) -> None:
    heads, target, _ = draw(rng, 3, EXACTLY_SIZED)
    total, values = losses.deep_supervision_loss(heads, target, loss=F.cross_entropy)
    torch.testing.assert_close(total.detach(), values.sum())
    torch.testing.assert_close(values[0], F.cross_entropy(heads[0], target).detach())
    # the U-Net's own loss, and a target with its channel written out
    _, ours = losses.deep_supervision_loss(heads, target, loss=nn.WeightedCrossEntropyLoss())
    torch.testing.assert_close(ours, values)
    heads, mask, weight = draw(rng, 1, EXACTLY_SIZED)
    one = losses.deep_supervision_loss(heads, mask, weight, loss=losses.bce_dice_loss)[0]
    two = losses.deep_supervision_loss(heads, mask[:, None], weight[:, None], loss=losses.bce_dice_loss)[0]
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_nearest_takes_pixel_centres(dtype: torch.dtype, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.integers(0, 2, (2, 13, 9))).to(dtype)
    for size in ((13, 9), (6, 4), (5, 9), (1, 1), (26, 20)):
        torch.testing.assert_close(nearest(x, size), nearest_plain(x, size), **EXACT)
    assert nearest(x, (13, 9)) is x


@pytest.mark.parametrize("resize", ["target", "logits"])
def test_deep_supervision_compiles(resize: str, rng: np.random.Generator) -> None:
    heads, target, weight = draw(rng, 1, EXACTLY_SIZED)
    module = nn.DeepSupervision(nn.BCEDiceLoss(), weights=[1, 1, 1, 0.5], resize=resize)
    expected = module(heads, target, weight).detach()
    values = module.head_losses
    module.head_losses = None
    torch.compiler.reset()
    total = torch.compile(module, fullgraph=True, backend="aot_eager")(heads, target, weight)
    torch.testing.assert_close(total.detach(), expected)
    torch.testing.assert_close(module.head_losses, values)
    total.backward()
    assert all(head.grad.isfinite().all() for head in heads)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_deep_supervision_has_gradients_and_stays_finite(num_channels: int, rng: np.random.Generator) -> None:
    target = torch.from_numpy(rng.integers(0, max(num_channels, 2), (2, 8, 8)))
    weight = torch.from_numpy(rng.uniform(0.5, 2, (2, 8, 8)))
    target[0, :2] = -100
    module = nn.DeepSupervision(nn.BCEDiceLoss(), [1.0, 0.5, 0.25])
    heads = [torch.from_numpy(rng.normal(size=(2, num_channels, s, s))).requires_grad_() for s in (8, 4, 2)]
    assert torch.autograd.gradcheck(lambda *each: module(each, target, weight), heads, fast_mode=True)
    for level in (-100.0, 100.0):
        for dtype in (torch.float16, torch.bfloat16):
            for mask in (torch.zeros_like(target), torch.ones_like(target), torch.full_like(target, -100)):
                halves = [torch.full(head.shape, level, dtype=dtype, requires_grad=True) for head in heads]
                value = module(halves, mask)
                value.backward()
                assert value.isfinite() and value.dtype == torch.float32
                assert all(half.grad is not None and half.grad.isfinite().all() for half in halves)


def test_stacked_heads_and_a_target_for_each_head(rng: np.random.Generator) -> None:
    """As DynUNet stacks its heads, in 2-D and 3-D; as nnU-Net gives its targets, one of the size of each head, the last for nothing."""
    loss = nn.DiceCELoss(include_background=False)
    for size in ((8, 9), (4, 5, 6)):
        stacked = torch.from_numpy(rng.normal(size=(2, 3, 2, *size)))
        target = torch.from_numpy(rng.integers(0, 2, (2, *size)))
        expected = sum(f * loss(stacked[:, i], target) for i, f in enumerate((1.0, 0.5, 0.25)))
        for given in (target, target[:, None]):
            value = nn.DeepSupervision(loss, [1.0, 0.5, 0.25])(stacked, given)
            torch.testing.assert_close(value, expected)
    heads = [torch.from_numpy(rng.normal(size=(2, 3, s, s))) for s in (16, 8, 4)]
    targets = [torch.from_numpy(rng.integers(0, 3, (2, 1, s, s))) for s in (16, 8, 4)]
    weights = [torch.from_numpy(rng.uniform(size=(2, s, s))) for s in (16, 8, 4)]
    value = nn.DeepSupervision(loss, [2 / 3, 1 / 3, 0.0])(heads, targets, weights)
    expected = 2 / 3 * loss(heads[0], targets[0], weights[0]) + 1 / 3 * loss(heads[1], targets[1], weights[1])
    torch.testing.assert_close(value, expected)
    with pytest.raises(InputError, match="got 3 heads but 2 targets; give one for each head"):
        nn.DeepSupervision(loss)(heads, targets[:2])


def test_what_deep_supervision_refuses(rng: np.random.Generator) -> None:
    heads, target, _ = draw(rng, 1, EXACTLY_SIZED[:2])
    module = nn.DeepSupervision(nn.BCEDiceLoss(), weights=[1, 2])
    with pytest.raises(InputTypeError, match="heads is a Tensor, expected a list or tuple.*use the loss itself"):
        module(heads[0], target)
    with pytest.raises(InputError, match="heads is empty"):
        module([], target)
    with pytest.raises(InputError, match="got 1 heads but 2 weights"):
        module(heads[:1], target)
    with pytest.raises(InputError, match=r"heads\[1\] has shape \(1, 1, 16, 12\) but the target \(2, 16, 12\)"):
        module([heads[0], heads[1][:1]], target)
    with pytest.raises(InputError, match=r"the loss of head 0 has shape \(2, 16, 12\), expected a scalar"):
        nn.DeepSupervision(nn.FocalLoss(reduction="none"))(heads, target)
    with pytest.raises(InputError, match="resize is 'weights', expected one of 'target', 'logits'"):
        nn.DeepSupervision(nn.DiceLoss(), resize="weights")
    with pytest.raises(InputTypeError, match="weights contains '1'"):
        nn.DeepSupervision(nn.DiceLoss(), weights=["1"])
    with pytest.raises(InputError, match="weights contains nan"):
        nn.DeepSupervision(nn.DiceLoss(), weights=[float("nan")])
    with pytest.raises(InputTypeError, match="loss is a str"):
        nn.DeepSupervision("dice")


FUNCTIONS = [
    losses.bce_with_logits_loss,
    losses.inverse_frequency_bce_loss,
    losses.dice_loss,
    losses.iou_loss,
    losses.focal_loss,
    losses.ms_ssim_loss,
    losses.focal_dice_loss,
    losses.focal_log_dice_loss,
    losses.bce_dice_loss,
    losses.focal_ms_ssim_iou_loss,
]


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_what_every_loss_refuses(loss: Callable[..., Tensor]) -> None:
    one, three = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8)
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    for match, *arguments in (
        ("logits has dtype int64", labels[:, None], labels),
        (r"logits has 2 dimensions, shape \(8, 8\)", one[0, 0], labels),
        ("have no channels", one[:, :0], labels),
        (r"target has shape \(2, 8, 7\), expected \(2, 8, 8\)", three, labels[:, :, 1:]),
        (
            r"target has shape \(2, 3, 8, 8\), expected \(2, 8, 8\) or \(2, 1, 8, 8\)",
            one,
            labels[:, None].repeat(1, 3, 1, 1),
        ),
        ("target has dtype float32, but logits with 3 classes expect an integer class map", three, labels.float()),
        ("target contains 3, expected classes 0 to 2 or ignore_index", three, labels + 3),
        ("target contains -1, expected classes 0 to 2", three, labels - 1),
        ("target contains 255, expected classes 0 to 1.*one channel tells two classes", one, labels + 255),
        ("target contains 2, expected classes 0 to 1.*one channel", one, labels + 2),
        ("target contains 1.5, expected probabilities", one, labels + 1.5),
        ("target contains nan, expected probabilities", one, labels + float("nan")),
        (r"weight has shape \(2, 8\)", one, labels, torch.ones(2, 8)),
        ("weight has dtype int64", one, labels, labels),
        ("weight requires gradients", one, labels, torch.ones(2, 8, 8, requires_grad=True)),
        ("logits is on cpu but target is on meta", one, labels.to("meta")),
    ):
        with pytest.raises(InputError, match=match):
            loss(*arguments)
    for wrong in (labels.numpy(), None):
        with pytest.raises(InputTypeError, match="expected a torch.Tensor"):
            loss(one, wrong)
    with pytest.raises(InputTypeError, match="ignore_index is 1.5, expected an integer"):
        loss(one, labels, ignore_index=1.5)


@pytest.mark.parametrize(
    ("module", "options", "match"),
    [
        (
            nn.BCEWithLogitsLoss,
            {"reduction": "avg"},
            "reduction is 'avg', expected one of 'none', 'sum', 'mean', 'weight_mean'",
        ),
        (nn.InverseFrequencyBCELoss, {"frequencies": [1.0]}, r"frequencies has shape \(1,\)"),
        (nn.InverseFrequencyBCELoss, {"frequencies": [1.0, -1.0]}, "expected finite numbers of at least 0"),
        (nn.InverseFrequencyBCELoss, {"frequencies": [0.0, 0.0]}, "one of them above 0"),
        (nn.InverseFrequencyBCELoss, {"frequencies": "many"}, "frequencies is 'many'"),
        (nn.DiceLoss, {"smooth": -1.0}, "smooth is -1.0, expected a number of at least 0"),
        (nn.DiceLoss, {"over": "class"}, "over is 'class', expected one of 'sample', 'batch'"),
        (
            nn.DiceLoss,
            {"reduction": "weight_mean"},
            "reduction is 'weight_mean', expected one of 'none', 'sum', 'mean'",
        ),
        (nn.IoULoss, {"include_background": 1}, "include_background is 1, expected True or False"),
        (nn.FocalLoss, {"gamma": -0.5}, "gamma is -0.5, expected a number of at least 0"),
        (nn.FocalLoss, {"gamma": float("nan")}, "gamma is nan"),
        (nn.FocalLoss, {"alpha": 2.0}, "alpha is 2.0, expected a number of at least 0, at most 1"),
        (nn.FocalDiceLoss, {"gamma": "2"}, "gamma is '2', expected a number"),
        (nn.FocalLogDiceLoss, {"smooth": 0.0}, "smooth is 0.0, expected a number above 0"),
        (nn.FocalLogDiceLoss, {"alpha": -1}, "alpha is -1"),
        (nn.BCEDiceLoss, {"ignore_index": None}, "ignore_index is None"),
        (nn.MSSSIMLoss, {"scales": 6}, "scales is 6, expected 1 to 5"),
        (nn.FocalMSSSIMIoULoss, {"scales": 2.0}, "scales is 2.0, expected an integer"),
    ],
)
def test_options_are_refused_when_the_module_is_made(
    module: type[torch.nn.Module], options: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        module(**options)


def test_vectors_by_class_must_fit_the_logits() -> None:
    logits, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"alpha has shape \(2,\), expected \(3,\): one number per class"):
        nn.FocalLoss(alpha=[0.5, 0.5])(logits, target)
    with pytest.raises(InputError, match=r"frequencies has shape \(3,\), expected \(2,\): \[background, foreground\]"):
        nn.InverseFrequencyBCELoss([1, 2, 3])(logits[:, :1], target)
    with pytest.raises(InputError, match="num_classes is 1, expected at least 2"):
        losses.class_counts(target, 1)
    with pytest.raises(InputTypeError, match="target has dtype float32"):
        losses.class_counts(target.float(), 2)


@pytest.mark.parametrize(("scales", "least"), [(5, 176), (4, 88), (3, 44), (2, 22), (1, 11)])
def test_ms_ssim_names_the_smallest_size(scales: int, least: int) -> None:
    target = torch.zeros(1, least + 7, least, dtype=torch.int64)
    assert losses.ms_ssim_loss(torch.full((1, 1, least + 7, least), -100.0), target, scales=scales) == 0
    small = torch.zeros(1, 1, least + 7, least - 1)
    advice = f"use scales={scales - 1}" if scales > 1 else "the least, with scales=1, is 11 x 11"
    match = f"are {least + 7} x {least - 1} pixels, too small.*: expected at least {least} x {least}.*{advice}"
    with pytest.raises(InputError, match=match):
        losses.ms_ssim_loss(small, target[:, :, 1:], scales=scales)
    with pytest.raises(InputError, match="logits has 3 dimensions.*expected"):
        losses.ms_ssim_loss(small[:, 0], target[:, 0, 1:], scales=scales)
