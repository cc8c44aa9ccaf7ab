"""Fuzzed cases of elastic_warp against the reference, whose coordinates are float64.

A coordinate that lies within rounding of a boundary between two pixels may fall to either side. So "nearest" has to
take what the reference takes with the coordinates moved by next to nothing, in one of nine directions; and a pixel that
is not finite may show up where it has a weight of next to nothing, and has to where it has more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import unet_fast.numpy
from tests.fuzz import drawing
from tests.tolerances import EXACT, WARP
from unet_fast import reference
from unet_fast._warp_arguments import FIELDS, INTEGER_IMAGES, INTERPOLATIONS, PADDINGS
from unet_fast.ops import elastic_warp

LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
ONLY_MOVED = tuple(dtype for dtype in LABELS if str(dtype).removeprefix("torch.") not in INTEGER_IMAGES)
MOVES = [(y, x) for y in (0.0, -1.0, 1.0) for x in (0.0, -1.0, 1.0)]
# pixels: far more than the rounding of a coordinate, far less than a pixel
MOVED = {torch.float32: 2e-4, torch.float64: 1e-9}
WEIGHT = 0.01  # from which on a pixel that is not finite has to show


@dataclass(frozen=True)
class Input:
    channels: int
    dtype: torch.dtype
    interpolation: str
    layout: str
    values: str
    fill: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Case(drawing.Run):
    n: int
    size: tuple[int, int]
    inputs: tuple[Input, ...]
    grid: tuple[int, int]
    sigma: float
    strange: float | None
    parameters: torch.dtype
    matrix: str
    field: str
    padding: str
    layout: str


@st.composite
def inputs(draw: st.DrawFn, size: tuple[int, int]) -> Input:
    dtype = draw(st.sampled_from((*drawing.FLOATS, torch.float32, draw(st.sampled_from(LABELS)))))
    resized = tuple(draw(st.integers(1, side + 6)) for side in size)
    return Input(
        channels=draw(st.sampled_from((1, 1, 2, 3, 0))),
        dtype=dtype,
        interpolation=draw(st.sampled_from(INTERPOLATIONS)) if dtype not in ONLY_MOVED else "nearest",
        layout=draw(drawing.layouts),
        values=draw(drawing.values),
        fill=draw(st.sampled_from((0.0, 1.0))),
        size=size if draw(st.booleans()) else resized,
    )


@st.composite
def elastic_warp_cases(draw: st.DrawFn) -> Case:
    size = (draw(drawing.sides(20)), draw(drawing.sides(20)))
    field = draw(st.sampled_from(FIELDS))
    least = 4 if field == "bspline_smooth" else 1
    return Case(
        n=draw(st.sampled_from((1, 1, 2, 3, 0))),
        size=size,
        inputs=tuple(draw(inputs(size)) for _ in range(draw(st.sampled_from((1, 1, 2, 3))))),
        grid=(draw(st.integers(least, 7)), draw(st.integers(least, 7))),
        sigma=draw(st.sampled_from((0.0, 0.5, 8.0, 60.0))),
        strange=draw(st.sampled_from((None,) * 7 + (np.nan, np.inf, -np.inf, 1e30, -3e9))),
        parameters=draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16))),
        matrix=draw(st.sampled_from(("none", "identity", "whole", "turned"))),
        field=field,
        padding=draw(st.sampled_from(PADDINGS)),
        layout=draw(st.sampled_from(("dense", "slice", "steps", "expanded"))),
        **draw(drawing.runs),
    )


def draw_matrix(case: Case, g: torch.Generator) -> torch.Tensor | None:
    if case.matrix == "none":
        return None
    matrix = torch.eye(2, 3, dtype=torch.float64).repeat(case.n, 1, 1)
    if case.matrix == "whole":
        matrix[:, :, 2] = torch.randint(-9, 10, (case.n, 2), generator=g).double()
    if case.matrix == "turned":
        angle = torch.rand(case.n, generator=g, dtype=torch.float64) * 2 * torch.pi
        matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos(), -angle.sin()
        matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin(), angle.cos()
        matrix[:, :, :2] += torch.randn(case.n, 2, 2, generator=g, dtype=torch.float64) * 0.1
        matrix[:, :, 2] = torch.randn(case.n, 2, generator=g, dtype=torch.float64) * 5
    return matrix.to(case.parameters)


def moved(displacement: torch.Tensor, matrix: torch.Tensor | None, step: float) -> list[dict[str, torch.Tensor]]:
    """The two parameters nine times, the source coordinates moved by ``step`` pixels in each direction."""
    displacement = displacement.double()
    if matrix is None:
        matrix = torch.eye(2, 3, dtype=torch.float64, device=displacement.device).expand(len(displacement), 2, 3)
    shifts = [
        torch.tensor([[0.0, 0.0, y], [0.0, 0.0, x]], dtype=torch.float64, device=displacement.device) for y, x in MOVES
    ]
    return [{"displacement": displacement, "matrix": matrix.double() + step * shift} for shift in shifts]


def check_elastic_warp(case: Case, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    displacement = drawing.tensor(g, (case.n, 2, *case.grid), torch.float64) * case.sigma
    if case.strange is not None and displacement.numel():
        displacement.view(-1)[case.seed % displacement.numel()] = case.strange
    displacement = drawing.lay_out(displacement.to(device, case.parameters), case.layout)
    matrix = draw_matrix(case, g)
    matrix = None if matrix is None else matrix.to(device)
    images = []
    for spec in case.inputs:
        image = drawing.tensor(g, (case.n, spec.channels, *case.size), spec.dtype, spec.values, device)
        images.append(drawing.lay_out(image, spec.layout))
    leaves = [image.requires_grad_() for image in images if image.dtype.is_floating_point]
    options: dict[str, Any] = {
        "output_size": [spec.size for spec in case.inputs],
        "interpolation": [spec.interpolation for spec in case.inputs],
        "fill": [spec.fill for spec in case.inputs],
        "field": case.field,
        "padding": case.padding,
    }
    grads = [
        drawing.lay_out(
            drawing.tensor(g, (case.n, spec.channels, *spec.size), spec.dtype, "plain", device), spec.layout
        )
        for spec in case.inputs
    ]
    with drawing.threads(case.threads):
        outputs = elastic_warp(tuple(images), displacement, matrix=matrix, **options)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        got = torch.autograd.grad([out for out, _ in pairs], leaves, [grad for _, grad in pairs]) if leaves else ()
    for spec, out in zip(case.inputs, outputs, strict=True):
        assert out.dtype == spec.dtype and tuple(out.shape) == (case.n, spec.channels, *spec.size)
        assert out.is_contiguous()
    if case.strange is not None:
        _check_strange(case, outputs, got)
        return
    wide = torch.float64 if any(spec.dtype == torch.float64 for spec in case.inputs) else torch.float32
    places = moved(displacement, matrix, MOVED[wide])
    # of coordinates: rounding grows with the displacement, and the slope between two pixels with their values
    coarse = max(1.0, float(displacement.abs().max()) / 20 if displacement.numel() else 1.0)
    gradients = iter(got)
    for spec, image, out, grad in zip(case.inputs, images, outputs, grads, strict=True):
        single = {name: value[0] if isinstance(value, list) else value for name, value in options.items()}
        single |= {"output_size": spec.size, "interpolation": spec.interpolation, "fill": spec.fill}
        scale = 8 * coarse * WARP[wide]["atol"] + WARP.get(spec.dtype, EXACT)["atol"]
        if not image.numel():
            assert not out.numel()
        elif spec.interpolation == "nearest":
            _check_nearest(image.detach(), out.detach(), places, single)
        else:
            _check_blended(spec, image.detach(), out.detach(), places, single, scale)
        if image.requires_grad:
            _check_gradient(spec, image.detach(), grad, next(gradients), places, single, scale)
    if device == "cpu" and all(spec.dtype != torch.bfloat16 for spec in case.inputs) and case.n:
        _check_numpy(case, images, outputs, displacement, matrix, options)


def _check_nearest(image: torch.Tensor, out: torch.Tensor, places: list[dict[str, torch.Tensor]], options: Any) -> None:
    left = torch.ones_like(out, dtype=torch.bool)
    for place in places:
        truth = reference.elastic_warp(image, **place, **options)
        left &= (out != truth) & ~((out != out) & (truth != truth))
        if not left.any():
            return
    raise AssertionError(
        f"{int(left.sum())} pixels of an input with interpolation 'nearest' are wrong: {left.nonzero()[:3]}"
    )


def _check_blended(
    spec: Input,
    image: torch.Tensor,
    out: torch.Tensor,
    places: list[dict[str, torch.Tensor]],
    options: Any,
    scale: float,
) -> None:
    finite = image.isfinite()
    truth = reference.elastic_warp(image.double().where(finite, 0.0), **places[0], **options)
    if not spec.dtype.is_floating_point:
        limits, largest = torch.iinfo(spec.dtype), float(image.double().abs().max())
        error = (out.double() - truth.clamp(limits.min, limits.max)).abs()
        assert float(error.max()) <= 0.5 + scale * (1 + largest), (
            f"{spec.interpolation} is off by {float(error.max()):.3g}"
        )
        return
    error = (out.double() - truth).abs()
    small = error <= scale * (1 + truth.abs())
    if finite.all():
        assert small.all(), f"{spec.interpolation} is off by {float(error.max()):.3g}, more than {scale:.3g}"
        return
    spread = torch.where(finite, 0.0, 1.0).double()
    reach = {**options, "fill": 0.0}
    # a weight of 0 at one place is none at most of the others
    influence = torch.stack([reference.elastic_warp(spread, **place, **reach).abs() for place in places])
    untouched = (influence == 0).all(0) if spec.interpolation == "bilinear" else _far_from(spread, places[0], reach)
    assert small[untouched].all(), "a finite pixel far from any that is not finite is wrong"
    if spec.interpolation == "bilinear":
        touched = (influence > WEIGHT).all(0)
        assert not out[touched].isfinite().any(), "a pixel that is not finite was blended into a finite result"


def _far_from(spread: torch.Tensor, place: dict[str, torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """Where no pixel of the bicubic neighbourhood, and one more, counts."""
    around = torch.nn.functional.max_pool2d(spread, 9, 1, 4)
    if options["padding"] == "zeros":  # from outside the image, too: as if it had a rim of border pixels
        options = {**options, "padding": "nearest"}
    return reference.elastic_warp(around, **place, **{**options, "interpolation": "nearest"}) == 0


def _check_gradient(
    spec: Input,
    image: torch.Tensor,
    grad: torch.Tensor,
    got: torch.Tensor,
    places: list[dict[str, torch.Tensor]],
    options: Any,
    scale: float,
) -> None:
    assert got.dtype == spec.dtype and got.shape == image.shape
    if not grad.numel() or not got.numel():
        drawing.close(got, torch.zeros_like(got), EXACT, "gradient of nothing")
        return
    truths = []
    for place in places if spec.interpolation == "nearest" else places[:1]:
        leaf = torch.zeros_like(image, dtype=torch.float64, requires_grad=True)
        truths += torch.autograd.grad(reference.elastic_warp(leaf, **place, **options), leaf, grad.double())
    if any(not torch.equal(truth, truths[0]) for truth in truths):
        return  # a pixel between two: the gradient may go to either
    largest = max(1.0, float(truths[0].abs().max()))
    error = float((got.double() - truths[0]).abs().max())
    assert error <= scale * largest * 2, f"the gradient is off by {error:.3g} of {largest:.3g}"


def _check_strange(case: Case, outputs: tuple[torch.Tensor, ...], gradients: tuple[torch.Tensor, ...]) -> None:
    """A field that leads nowhere: what is read is a pixel or the fill value, and the gradient is finite."""
    for spec, out in zip(case.inputs, outputs, strict=True):
        if spec.values in ("plain", "coarse"):
            assert out.double().isfinite().all(), "finite pixels gave a result that is not finite"
    for gradient in gradients:
        assert gradient.isfinite().all(), "the gradient is not finite"


def _check_numpy(
    case: Case,
    images: list[torch.Tensor],
    outputs: tuple[torch.Tensor, ...],
    displacement: Any,
    matrix: Any,
    options: dict[str, Any],
) -> None:
    arrays = unet_fast.numpy.elastic_warp(
        tuple(image.detach().numpy() for image in images),
        displacement.double().numpy(),
        matrix=None if matrix is None else matrix.double().numpy(),
        **options,
    )
    for spec, array, out in zip(case.inputs, arrays, outputs, strict=True):
        # the same kernels; in another layout, from which NumPy's function makes a copy, another loop may round otherwise
        same = spec.layout == "dense" or spec.interpolation == "nearest"
        atol = WARP[spec.dtype]["atol"] if spec.dtype in WARP else 1  # a whole number, rounded the other way
        tolerance = EXACT if same else {"rtol": 1e-2 * atol, "atol": atol}
        got, truth = torch.from_numpy(array), out.detach()
        if not same:  # and may leave out a pixel of weight 0, which would make a NaN of an infinity
            finite = got.isfinite() & truth.isfinite()
            got, truth = got[finite], truth[finite]
        drawing.close(got, truth, tolerance, "NumPy's result")
