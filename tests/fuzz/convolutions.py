"""Fuzzed cases of conv3x3 by Winograd's algorithm: any channels, sizes, layouts, slices, activations and thread counts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tests.fuzz import drawing
from unet_fast import ops

CHANNELS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 70, 250)  # two of the last: weights made on the way


@dataclass(frozen=True)
class Convolution(drawing.Run):
    n: int
    channels: tuple[int, ...]
    out_channels: int
    size: tuple[int, int]
    padding: int
    bias: bool
    activation: str | None
    slope: float
    layouts: tuple[str, str, str]
    level: str


@st.composite
def conv3x3_cases(draw: st.DrawFn) -> Convolution:
    padding = draw(st.integers(0, 1))
    return Convolution(
        n=draw(st.sampled_from((1, 1, 2, 3, 0))),
        channels=tuple(draw(st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3))),
        out_channels=draw(st.sampled_from(CHANNELS)),
        size=(draw(st.integers(3 - 2 * padding, 23)), draw(st.integers(3 - 2 * padding, 23))),
        padding=padding,
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from((None, "relu", "leaky_relu"))),
        slope=draw(st.sampled_from((0.0, 0.01, 0.5, 1.0))),
        layouts=draw(st.tuples(*[drawing.layouts] * 3)),
        level=draw(st.sampled_from(("plain", "avx2", "avx512"))),
        **draw(drawing.runs),
    )


def check_conv3x3(case: Convolution, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)

    def new(*shape: int, layout: str = "") -> torch.Tensor:
        tensor = torch.randn(shape, generator=g)
        return (drawing.lay_out(tensor, layout) if layout else tensor).requires_grad_()

    maps = [new(case.n, c, *case.size, layout=case.layouts[i % 2]) for i, c in enumerate(case.channels)]
    weight = new(case.out_channels, sum(case.channels), 3, 3, layout=case.layouts[1])
    bias = new(case.out_channels) if case.bias else None
    leaves = [*maps, weight] if bias is None else [*maps, weight, bias]
    before = os.environ.get("UNET_FAST_CPU_LEVEL")
    os.environ["UNET_FAST_CPU_LEVEL"] = case.level
    options = {"padding": case.padding, "activation": case.activation, "negative_slope": case.slope}
    try:
        with ops.use_convolution("winograd"), drawing.threads(case.threads):
            out = ops.conv3x3(maps, weight, bias, **options)
            with torch.no_grad():
                assert torch.equal(ops.conv3x3(maps, weight, bias, **options), out)  # with kept weights
            grad = drawing.lay_out(torch.randn(out.shape, generator=g), case.layouts[2])
            got = torch.autograd.grad(out, leaves, grad)
    finally:
        del os.environ["UNET_FAST_CPU_LEVEL"]
        if before is not None:
            os.environ["UNET_FAST_CPU_LEVEL"] = before
    slow = [leaf.detach().double().requires_grad_() for leaf in leaves]
    joined, count = torch.cat(slow[: len(maps)], 1), len(maps)
    raw = F.conv2d(joined, slow[count], slow[count + 1] if case.bias else None, padding=case.padding)
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": case.slope}[case.activation]
    assert out.shape == raw.shape and out.dtype == torch.float32
    drawing.close_to_largest(out.detach(), torch.where(raw > 0, raw, slope * raw).detach(), 2e-5, "out", floor=1.0)
    # where the sum lies within rounding of 0 the two sides may disagree about the mask, which is the op's own
    kept = torch.where(out.detach() > 0, 1.0, slope).double() * grad.double()
    names = [f"inputs[{i}]" for i in range(count)] + ["weight", "bias"]
    for name, a, b in zip(names, got, torch.autograd.grad(raw, slow, kept), strict=False):
        drawing.close_to_largest(a, b, 5e-5, f"gradient of {name}", floor=1.0)
