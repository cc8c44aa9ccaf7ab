"""Fuzzed cases of crop_concat: bit for bit what slices and torch.cat give, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.fuzz import drawing
from tests.tolerances import EXACT
from unet_fast import reference
from unet_fast.ops import crop_concat

DTYPES = (*drawing.FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Case(drawing.Run):
    up: tuple[int, ...]
    skip_channels: int
    extra: tuple[int, ...]
    dtype: torch.dtype
    layouts: tuple[str, str, str]
    values: str


@st.composite
def crop_concat_cases(draw: st.DrawFn) -> Case:
    dims = draw(st.sampled_from((2, 2, 3)))
    largest = 9 if dims == 2 else 5
    up = st.tuples(st.integers(1, 3), drawing.sides(8), *[drawing.sides(largest)] * dims)
    return Case(
        up=draw(drawing.sometimes_empty(up)),
        skip_channels=draw(st.integers(0, 20)),
        extra=tuple(draw(st.integers(0, 7)) for _ in range(dims)),
        dtype=draw(st.sampled_from(DTYPES)),
        layouts=draw(st.tuples(*[drawing.layouts] * 3)),
        values=draw(drawing.values),
        **draw(drawing.runs),
    )


def check_crop_concat(case: Case, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    skip_shape = (
        case.up[0],
        case.skip_channels,
        *(size + more for size, more in zip(case.up[2:], case.extra, strict=True)),
    )
    skip = drawing.lay_out(drawing.tensor(g, skip_shape, case.dtype, case.values, device), case.layouts[0])
    up = drawing.lay_out(drawing.tensor(g, case.up, case.dtype, case.values, device), case.layouts[1])
    if case.dtype.is_floating_point:
        skip.requires_grad_()
        up.requires_grad_()
    truth = reference.crop_concat(skip, up)
    grad = drawing.lay_out(drawing.tensor(g, truth.shape, case.dtype, case.values, device), case.layouts[2])
    with drawing.threads(case.threads):
        out = crop_concat(skip, up)
        drawing.close(out, truth, EXACT, "out")
        assert out.dtype == case.dtype
        if not case.dtype.is_floating_point:
            return
        got = torch.autograd.grad(out, (skip, up), grad)
    want = torch.autograd.grad(truth, (skip, up), grad)
    drawing.close(got[0], want[0], EXACT, "gradient of skip")
    drawing.close(got[1], want[1], EXACT, "gradient of up")
