"""Fuzzed cases of the fused junctions: bias_relu, relu_pool_skip, conv_bias_relu, up_conv_into, up_conv_crop_concat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.fuzz import drawing
from tests.tolerances import CHANNEL_SUM, CONVOLUTION, EXACT
from unet_fast import ops, reference

# torch's own float16 convolutions on the CPU, which both sides call, are not exact enough to compare with
CONVOLVED = (torch.float32, torch.float64, torch.bfloat16)
channel_counts = st.integers(1, 20) | st.sampled_from((32, 33, 64, 65))


@dataclass(frozen=True, kw_only=True)
class Junction(drawing.Run):
    """What the maps of every junction are: ``layouts`` of each map and gradient."""

    dtype: torch.dtype
    bias: bool
    values: str
    layouts: tuple[str, ...]


@dataclass(frozen=True)
class BiasRelu(Junction):
    shape: tuple[int, ...]


@st.composite
def bias_relu_cases(draw: st.DrawFn) -> BiasRelu:
    dims = draw(st.integers(1, 3))
    shape = st.tuples(st.integers(1, 3), channel_counts, *[drawing.sides((40, 12, 6)[dims - 1])] * dims)
    return BiasRelu(
        shape=draw(drawing.sometimes_empty(shape)),
        dtype=draw(drawing.floats),
        bias=draw(st.booleans()),
        values=draw(drawing.values),
        layouts=draw(st.tuples(*[drawing.layouts] * 2)),
        **draw(drawing.runs),
    )


def draw_bias(g: torch.Generator, channels: int, dtype: torch.dtype, values: str, device: str) -> torch.Tensor:
    return drawing.tensor(g, (channels,), drawing.wide(dtype), values, device).requires_grad_()


def check_bias_relu(case: BiasRelu, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    x = drawing.tensor(g, case.shape, case.dtype, case.values, device)
    x = drawing.lay_out(x, case.layouts[0]).requires_grad_()
    bias = draw_bias(g, case.shape[1], case.dtype, case.values, device) if case.bias else None
    grad = drawing.lay_out(drawing.tensor(g, case.shape, case.dtype, "plain", device), case.layouts[1])
    leaves = [x] if bias is None else [x, bias]
    with drawing.threads(case.threads):
        out = ops.bias_relu(x, bias)
        got = torch.autograd.grad(out, leaves, grad)
    truth = reference.bias_relu(x, bias)
    drawing.close(out, truth, EXACT, "out")
    want = torch.autograd.grad(truth, leaves, grad)
    drawing.close(got[0], want[0], EXACT, "gradient of x")
    if bias is not None:
        _check_bias_gradient(got[1], got[0], case.dtype)
    if case.layouts[0] in ("dense", "channels_last", "offset"):
        in_place = drawing.lay_out(x.detach().clone(), case.layouts[0])
        torch.ops.unet_fast.bias_relu_(in_place, None if bias is None else bias.detach())
        drawing.close(in_place, truth.detach(), EXACT, "in place")


def _check_bias_gradient(got: torch.Tensor, grad: torch.Tensor, dtype: torch.dtype) -> None:
    """The sum of the gradient of the map, which has been checked."""
    truth = grad.double().sum([dim for dim in range(grad.dim()) if dim != 1])
    drawing.close(got.double(), truth, CHANNEL_SUM[dtype], "gradient of the bias")


@dataclass(frozen=True)
class ReluPoolSkip(Junction):
    shape: tuple[int, int, int, int]
    skip_size: tuple[int, int]
    up_channels: int
    used: str


@st.composite
def relu_pool_skip_cases(draw: st.DrawFn) -> ReluPoolSkip:
    side = drawing.sides(14).map(lambda size: size + 1)
    shape = draw(st.tuples(st.sampled_from((1, 1, 2, 3, 0)), channel_counts, side, side))
    return ReluPoolSkip(
        shape=shape,
        skip_size=(draw(st.integers(1, shape[2])), draw(st.integers(1, shape[3]))),
        up_channels=draw(st.integers(0, 5)),
        dtype=draw(drawing.floats),
        bias=draw(st.booleans()),
        values=draw(drawing.values),
        layouts=draw(st.tuples(*[drawing.layouts] * 3)),
        used=draw(st.sampled_from(("both", "both", "pooled", "buffer"))),
        **draw(drawing.runs),
    )


def check_relu_pool_skip(case: ReluPoolSkip, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    channels = case.shape[1]
    x = drawing.tensor(g, case.shape, case.dtype, case.values, device)
    x = drawing.lay_out(x, case.layouts[0]).requires_grad_()
    bias = draw_bias(g, channels, case.dtype, "coarse", device) if case.bias else None
    options = {"skip_size": case.skip_size, "up_channels": case.up_channels}
    leaves = [x] if bias is None else [x, bias]
    with drawing.threads(case.threads):
        outputs = ops.relu_pool_skip(x, bias, **options)
    truths = reference.relu_pool_skip(x, bias, **options)
    drawing.close(outputs[0], truths[0], EXACT, "pooled")
    drawing.close(outputs[1][:, :channels], truths[1][:, :channels], EXACT, "skip")
    assert outputs[1].shape == truths[1].shape
    grads = [
        drawing.lay_out(drawing.tensor(g, out.shape, case.dtype, "plain", device), layout)
        for out, layout in zip(outputs, case.layouts[1:], strict=True)
    ]
    grads[1] = grads[1].contiguous() if case.layouts[2] == "expanded" else grads[1]
    grads[1][:, channels:] = torch.nan  # nobody may read what comes from the other half of the buffer
    taken = {"both": (0, 1), "pooled": (0,), "buffer": (1,)}[case.used]
    with drawing.threads(case.threads):
        got = torch.autograd.grad([outputs[i] for i in taken], leaves, [grads[i] for i in taken])
    halves = truths[0], truths[1][:, :channels]
    grads = [grads[0], grads[1][:, :channels]]
    want = torch.autograd.grad([halves[i] for i in taken], leaves, [grads[i] for i in taken])
    # which of several NaN gets the gradient of the pool is nobody's business
    torn = torch.nn.functional.avg_pool2d(x.detach().isnan().double(), 2, ceil_mode=True) > 0.25
    torn = torn.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : case.shape[2], : case.shape[3]]
    drawing.close(got[0].where(~torn, 0.0), want[0].where(~torn, 0.0), EXACT, "gradient of x")
    if bias is not None:
        _check_bias_gradient(got[1], got[0], case.dtype)


@dataclass(frozen=True)
class Convolution(Junction):
    shape: tuple[int, int, int, int]
    out_channels: int
    kernel: tuple[int, int]
    padding: int


@st.composite
def conv_bias_relu_cases(draw: st.DrawFn) -> Convolution:
    kernel = draw(st.sampled_from(((3, 3), (3, 3), (1, 1), (2, 2), (1, 3), (5, 5))))
    padding = draw(st.integers(0, 2))
    least = [max(1, side - 2 * padding) for side in kernel]
    sizes = [draw(st.integers(side, side + 9)) for side in least]
    return Convolution(
        shape=(draw(st.sampled_from((1, 1, 2, 3, 0))), draw(st.sampled_from((1, 2, 3, 8, 16, 17))), *sizes),
        out_channels=draw(st.sampled_from((1, 2, 5, 8, 16, 17))),
        kernel=kernel,
        padding=padding,
        dtype=draw(st.sampled_from(CONVOLVED)),
        bias=draw(st.booleans()),
        # where a NaN gets to depends on the algorithm that torch's convolution takes: some multiply it by zeros of their own
        values=draw(st.sampled_from(("plain", "coarse"))),
        layouts=draw(st.tuples(*[drawing.layouts] * 3)),
        **draw(drawing.runs),
    )


def check_conv_bias_relu(case: Convolution, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    x = drawing.tensor(g, case.shape, case.dtype, case.values, device)
    weight = drawing.tensor(g, (case.out_channels, case.shape[1], *case.kernel), case.dtype, "plain", device)
    x = drawing.lay_out(x, case.layouts[0]).requires_grad_()
    weight = drawing.lay_out(weight * 0.5, case.layouts[1]).requires_grad_()
    bias = draw_bias(g, case.out_channels, case.dtype, "plain", device) if case.bias else None
    leaves = [x, weight] if bias is None else [x, weight, bias]
    with drawing.threads(case.threads):
        out = ops.conv_bias_relu(x, weight, bias, padding=case.padding)
    slow = [leaf.detach().double().requires_grad_() for leaf in leaves]
    raw = torch.nn.functional.conv2d(slow[0], slow[1], padding=case.padding)
    if bias is not None:
        raw = raw + slow[2][:, None, None]
    truth = torch.relu(raw)
    assert out.dtype == case.dtype and out.shape == truth.shape
    drawing.close(out.double(), truth, CONVOLUTION[case.dtype], "out")
    grad = drawing.lay_out(drawing.tensor(g, truth.shape, case.dtype, "plain", device), case.layouts[2])
    with drawing.threads(case.threads):
        got = torch.autograd.grad(out, leaves, grad)
    # where the sum lies within rounding of 0 the two sides may disagree about the mask, which is the op's own
    kept = grad.double() * ~(out.detach() <= 0)
    want = torch.autograd.grad(raw, slow, kept)
    for name, a, b in zip(("x", "weight", "bias"), got, want, strict=False):
        drawing.close_to_largest(a, b, _relative(case.dtype), f"gradient of {name}", floor=1.0)


def _relative(dtype: torch.dtype) -> float:
    """Of the largest gradient: sums of products in an order that the library chooses, rounded to the dtype."""
    return {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}[dtype]


@dataclass(frozen=True)
class UpConvolution(Junction):
    n: int
    channels: tuple[int, int, int]  # in, out, of the skip
    size: tuple[int, int]
    extra: tuple[int, int]
    fresh: bool


@st.composite
def up_conv_into_cases(draw: st.DrawFn) -> UpConvolution:
    return UpConvolution(
        n=draw(st.sampled_from((1, 1, 2, 3, 0))),
        channels=(draw(channel_counts), draw(channel_counts), draw(st.integers(0, 9))),
        size=(draw(st.integers(1, 7)), draw(st.integers(1, 9) | st.sampled_from((16, 33)))),
        extra=(draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        dtype=draw(drawing.floats),
        bias=draw(st.booleans()),
        values=draw(drawing.values),
        layouts=draw(st.tuples(*[drawing.layouts] * 4)),
        fresh=draw(st.booleans()),
        **draw(drawing.runs),
    )


up_conv_crop_concat_cases = up_conv_into_cases


def _up_conv_operands(case: UpConvolution, g: torch.Generator, device: str) -> list[torch.Tensor]:
    c_in, c_out, _ = case.channels
    # torch's product of bfloat16 matrices (oneDNN, AMX) of an odd number of terms multiplies what lies behind the end of a
    # row by 0, so that the NaN of one row reaches another
    values = case.values if case.dtype in (torch.float32, torch.float64) else "plain"
    x = drawing.tensor(g, (case.n, c_in, *case.size), case.dtype, values, device)
    weight = drawing.tensor(g, (c_in, c_out, 2, 2), case.dtype, "plain", device) / c_in**0.5
    operands = [drawing.lay_out(x, case.layouts[0]), drawing.lay_out(weight, case.layouts[1])]
    return [t.requires_grad_() for t in operands] + (
        [draw_bias(g, c_out, case.dtype, "plain", device)] if case.bias else []
    )


def _transposed_convolution(operands: list[torch.Tensor]) -> torch.Tensor:
    """As one matrix product for each of the four output pixels of an input pixel."""
    x, weight = operands[:2]
    parts = torch.einsum("nihw,ioyx->nohywx", x, weight)
    up = parts.reshape(len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    return up if len(operands) == 2 else up + operands[2][:, None, None]


def _check_up_conv(case: UpConvolution, got: Any, want: Any) -> None:
    for name, a, b in zip(("x", "weight", "bias"), got, want, strict=False):
        drawing.close_to_largest(a, b, _relative(case.dtype), f"gradient of {name}", floor=1.0)


def check_up_conv_crop_concat(case: UpConvolution, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    operands = _up_conv_operands(case, g, device)
    full = [2 * side + more for side, more in zip(case.size, case.extra, strict=True)]
    skip = drawing.tensor(g, (case.n, case.channels[2], *full), case.dtype, case.values, device)
    skip = drawing.lay_out(skip, case.layouts[2]).requires_grad_()
    x, weight, bias = (*operands, None)[:3]
    with drawing.threads(case.threads):
        out = ops.up_conv_crop_concat(x, weight, bias, skip)
    slow = [t.detach().double().requires_grad_() for t in (*operands, skip)]
    up = _transposed_convolution(slow[:-1])
    top, left = ((large - small) // 2 for large, small in zip(full, up.shape[2:], strict=True))
    truth = torch.cat([slow[-1][:, :, top : top + up.shape[2], left : left + up.shape[3]], up], 1)
    assert out.dtype == case.dtype and out.shape == truth.shape
    drawing.close_to_largest(out, truth, _relative(case.dtype), "out", floor=1.0)
    grad = drawing.lay_out(drawing.tensor(g, truth.shape, case.dtype, "plain", device), case.layouts[3])
    with drawing.threads(case.threads):
        got = torch.autograd.grad(out, (*operands, skip), grad)
    want = torch.autograd.grad(truth, slow, grad.double())
    _check_up_conv(case, got[:-1], want[:-1])
    drawing.close(got[-1].double(), want[-1], EXACT, "gradient of skip")


def check_up_conv_into(case: UpConvolution, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    operands = _up_conv_operands(case, g, device)
    c_out, kept = case.channels[1:]
    shape = (case.n, kept + c_out, 2 * case.size[0], 2 * case.size[1])
    layout = "channels_last" if case.layouts[2].startswith("channels_last") else "dense"
    base = drawing.lay_out(drawing.tensor(g, shape, case.dtype, case.values, device), layout).requires_grad_()
    x, weight, bias = (*operands, None)[:3]
    with drawing.threads(case.threads):
        out = ops.up_conv_into(x, weight, bias, base * 1, fresh=case.fresh)
    slow = [t.detach().double().requires_grad_() for t in operands]
    truth = _transposed_convolution(slow)
    drawing.close(out[:, :kept], base[:, :kept], EXACT, "the other half of the buffer")
    drawing.close_to_largest(out[:, kept:], truth, _relative(case.dtype), "out", floor=1.0)
    grad = drawing.lay_out(drawing.tensor(g, shape, case.dtype, "plain", device), case.layouts[3])
    with drawing.threads(case.threads):
        got = torch.autograd.grad(out, (*operands, base), grad)
    _check_up_conv(case, got[:-1], torch.autograd.grad(truth, slow, grad[:, kept:].double()))
    drawing.close(got[-1][:, :kept], grad[:, :kept], EXACT, "gradient of the buffer")
    if not case.fresh:
        assert got[-1][:, kept:].eq(0).all()
