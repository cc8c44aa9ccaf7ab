"""Fuzzed cases of weighted_cross_entropy and head_cross_entropy, against the references in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.fuzz import drawing
from tests.places import has
from tests.tolerances import CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT, HEAD_GRADIENT
from unet_fast import reference
from unet_fast.errors import InputError
from unet_fast.ops import head_cross_entropy, weighted_cross_entropy
from unet_fast.ops.head_cross_entropy import fits_registers

TARGETS = (torch.int64, torch.int32, torch.uint8)


@dataclass(frozen=True)
class Target:
    """A class map, and what lies beside the classes in it."""

    classes: int
    dtype: torch.dtype
    ignore_index: int
    ignored: float
    wrong: bool
    weight: torch.dtype | None
    weight_values: str
    layout: str


@st.composite
def targets(draw: st.DrawFn, most: int) -> Target:
    dtype = draw(st.sampled_from(TARGETS))
    return Target(
        classes=draw(st.integers(2, most)),
        dtype=dtype,
        ignore_index=draw(st.sampled_from((255, 0, 1) if dtype == torch.uint8 else (-100, 255, 0, 1, -1))),
        ignored=draw(st.sampled_from((0.0, 0.1, 0.1, 1.0))),
        wrong=draw(st.integers(0, 19)) == 19,
        weight=draw(st.sampled_from((None, *drawing.FLOATS))),
        weight_values=draw(st.sampled_from(("plain",) * 3 + drawing.VALUES)),
        layout=draw(drawing.layouts),
    )


def draw_target(
    case: Target, shape: tuple[int, ...], g: torch.Generator, device: str
) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
    """The target, the weight, and whether the target is to be refused."""
    target = torch.randint(0, case.classes, shape, generator=g)
    target[torch.rand(shape, generator=g) < case.ignored] = case.ignore_index
    wrong = case.wrong and target.numel() > 0 and drawing.looks_at_values(device)
    if wrong:
        target.view(-1)[-1] = 250 if case.dtype == torch.uint8 else 2**31 - 1
    target = drawing.lay_out(target.to(case.dtype).to(device), case.layout)
    valid = (target == case.ignore_index) | ((target >= 0) & (target < case.classes))
    wrong = not bool(valid.all())
    if case.weight is None:
        return target, None, wrong
    weight = drawing.tensor(g, shape, case.weight, case.weight_values, device).abs()
    return target, drawing.lay_out(weight, case.layout), wrong


def refuses(call: Any) -> None:
    try:
        call()
    except InputError as error:
        assert "target contains" in str(error), error
    else:
        raise AssertionError("a target outside the classes was taken")


def double(weight: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """As the op takes it: rounded to its own dtype first."""
    return None if weight is None else weight.to(drawing.wide(dtype)).double()


def close(got: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, weight: torch.Tensor | None) -> None:
    """Losses agree; but infinity times a loss of a sure pixel is infinity, or NaN where rounding makes that loss 0.

    ``weight``: of the pixels of ``truth``, or of all that a sum ran over.
    """
    truth = truth.detach()
    if weight is not None:
        infinite = weight.isinf() if truth.dim() else weight.isinf().any()
        truth = torch.where(infinite & ~truth.isfinite() & ~got.isfinite(), got.detach().double(), truth)
    drawing.close(got.double(), truth, CROSS_ENTROPY[dtype], "loss")


@dataclass(frozen=True, kw_only=True)
class Pixels(drawing.Run):
    """A target, and what is beside it at each pixel."""

    shape: tuple[int, ...]  # without the classes or channels
    target: Target
    dtype: torch.dtype
    values: str
    layout: str
    reduction: str


@st.composite
def pixel_shapes(draw: st.DrawFn) -> tuple[int, ...]:
    dims = draw(st.integers(1, 3))
    shape = st.tuples(st.integers(1, 3), *[drawing.sides((40, 9, 5)[dims - 1])] * dims)
    return draw(drawing.sometimes_empty(shape))


@dataclass(frozen=True)
class Loss(Pixels):
    scale: float


@st.composite
def weighted_cross_entropy_cases(draw: st.DrawFn) -> Loss:
    return Loss(
        shape=draw(pixel_shapes()),
        target=draw(targets(draw(st.sampled_from((4, 12, 40))))),
        dtype=draw(drawing.floats),
        scale=draw(st.sampled_from((0.01, 1.0, 1.0, 30.0))),
        values=draw(drawing.values),
        layout=draw(drawing.layouts),
        reduction=draw(st.sampled_from(("none", "sum", "mean", "weight_mean"))),
        **draw(drawing.runs),
    )


def check_weighted_cross_entropy(case: Loss, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    n, *size = case.shape
    target, weight, wrong = draw_target(case.target, case.shape, g, device)
    logits = drawing.tensor(g, (n, case.target.classes, *size), case.dtype, case.values, device) * case.scale
    logits = drawing.lay_out(logits, case.layout).requires_grad_()
    options: dict[str, Any] = {"ignore_index": case.target.ignore_index, "reduction": case.reduction}
    with drawing.threads(case.threads):
        if wrong:
            refuses(lambda: weighted_cross_entropy(logits, target, weight, **options))
            return
        loss = weighted_cross_entropy(logits, target, weight, **options)
    slow = logits.detach().double().requires_grad_()
    truth = reference.weighted_cross_entropy(slow, target, double(weight, case.dtype), **options)
    assert loss.dtype == drawing.wide(case.dtype)
    close(loss, truth, case.dtype, double(weight, case.dtype))
    scale = drawing.tensor(g, truth.shape, torch.float64, "plain", device).to(loss.dtype)
    if case.seed % 2 and not truth.dim():
        scale = torch.ones_like(scale)  # which is not multiplied with
    with drawing.threads(case.threads):
        (got,) = torch.autograd.grad(loss, logits, scale)
    (want,) = torch.autograd.grad(truth, slow, scale.double())
    assert got.dtype == case.dtype
    tolerance = CROSS_ENTROPY_GRADIENT[case.dtype]
    # the result is rounded once in the forward and once when it is scaled; the truth loses what it subtracts from 1
    rounding = max(2 * drawing.least(case.dtype), 8 * torch.finfo(torch.float64).eps)
    floor = max(1e-6, rounding / tolerance)
    drawing.close_to_largest(got, want, tolerance, "gradient", floor=floor)


@dataclass(frozen=True)
class Head(Pixels):
    channels: int
    relu: bool
    feature_bias: bool
    bias: bool


@st.composite
def head_cross_entropy_cases(draw: st.DrawFn) -> Head:
    relu = draw(st.booleans())
    return Head(
        shape=draw(pixel_shapes()),
        channels=draw(st.integers(1, 20) | st.sampled_from((32, 64, 65))),
        target=draw(targets(9)),
        dtype=draw(drawing.floats),
        values=draw(drawing.values),
        layout=draw(drawing.layouts),
        relu=relu,
        feature_bias=relu and draw(st.booleans()),
        bias=draw(st.booleans()),
        reduction=draw(st.sampled_from(("sum", "mean", "weight_mean"))),
        **draw(drawing.runs),
    )


def check_head_cross_entropy(case: Head, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    n, *size = case.shape
    target, pixels, wrong = draw_target(case.target, case.shape, g, device)
    wide, classes = drawing.wide(case.dtype), case.target.classes
    if not has("classes") and not fits_registers(classes, case.channels, case.dtype):
        return
    features = drawing.tensor(g, (n, case.channels, *size), case.dtype, case.values, device)
    features = drawing.lay_out(features, case.layout)
    weight = drawing.tensor(g, (classes, case.channels), wide, "plain", device)
    bias = drawing.tensor(g, (classes,), wide, "plain", device) if case.bias else None
    extra = drawing.tensor(g, (case.channels,), wide, "plain", device) if case.feature_bias else None
    leaves = [None if t is None else t.requires_grad_() for t in (features, weight, bias, extra)]
    slow = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    options: dict[str, Any] = {
        "relu": case.relu,
        "ignore_index": case.target.ignore_index,
        "reduction": case.reduction,
    }
    with drawing.threads(case.threads):
        if wrong:
            refuses(lambda: head_cross_entropy(features, weight, bias, target, pixels, feature_bias=extra, **options))
            return
        loss = head_cross_entropy(features, weight, bias, target, pixels, feature_bias=extra, **options)
        scale = 1.0 if case.seed % 2 else 0.75
        names = ("features", "weight", "bias", "feature_bias")
        present = {name: t for name, t in zip(names, leaves, strict=True) if t is not None}
        got = torch.autograd.grad(loss * scale, list(present.values()))
    truth = reference.head_cross_entropy(
        slow[0], slow[1], slow[2], target, double(pixels, case.dtype), feature_bias=slow[3], **options
    )
    assert loss.dtype == wide
    close(loss, truth, case.dtype, double(pixels, case.dtype))
    want = torch.autograd.grad(truth * scale, [t for t in slow if t is not None])
    for (name, leaf), a, b in zip(present.items(), got, want, strict=True):
        assert a.dtype == leaf.dtype
        drawing.close_to_largest(a, b, HEAD_GRADIENT[leaf.dtype], f"gradient of {name}", floor=0.1)
