"""Each fused junction of the U-Net against the layers of torch that it takes the place of, eager and compiled.

Sizes are those of the first level of a 572 tile (base 64) on a GPU, of a 316 tile with base 32 on the CPU. The plain convolution
adds its bias itself, so the layers behind it have none to add; the fused contracting junction does it for the convolution.

python -m benchmarks.bench_junctions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Options, Suite, run
from unet_fast import ops
from unet_fast.ops._tolerances import NETWORK_LOW_PRECISION

Function = Callable[..., Any]


def contracting_plain(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """ReLU, pool, and the skip's crop copied as torch.cat copies it."""
    y = F.relu(x)
    top, left = (y.shape[2] - size[0]) // 2, (y.shape[3] - size[1]) // 2
    return F.max_pool2d(y, 2), y[:, :, top : top + size[0], left : left + size[1]].clone()


def expanding_plain(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """Transposed convolution, crop, torch.cat."""
    up = F.conv_transpose2d(x, weight, bias, stride=2)
    top, left = (skip.shape[2] - up.shape[2]) // 2, (skip.shape[3] - up.shape[3]) // 2
    return torch.cat([skip[:, :, top : top + up.shape[2], left : left + up.shape[3]], up], 1)


def convolution_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with bias, ReLU in place."""
    return F.relu(F.conv2d(x, weight, bias), inplace=True)


def head_plain(features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, pixel_weight: Tensor) -> Tensor:
    """Logits, cross-entropy, weights."""
    logits = F.conv2d(features, weight, bias).float()
    return (F.cross_entropy(logits, target, reduction="none") * pixel_weight).mean()


def compare(
    suite: Suite,
    case: str,
    fused: dict[str, Function],
    plain: Function,
    arguments: tuple[Any, ...],
    leaves: Sequence[Tensor],
) -> None:
    """Check and time the forward pass, then forward and backward with dense random gradients."""
    compiled = suite.options.compile(plain)
    functions = {**fused, "layers of torch": plain, "the same, torch.compile": compiled}

    def call(function: Function) -> Any:
        return function(*arguments)

    def outputs(function: Function) -> tuple[Tensor, ...]:
        out = call(function)
        return out if isinstance(out, tuple) else (out,)

    grads = [torch.randn_like(out) for out in outputs(plain)]

    def both(function: Function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs(function), leaves, grads)

    def values(function: Function) -> list[Tensor]:
        # without their history: a graph cannot capture a backward pass whose leaves are still known to another stream
        return [*(out.detach() for out in outputs(function)), *both(function)]

    first = next(iter(fused.values()))
    for a, b in zip(values(first), values(plain), strict=True):
        error = (a.double() - b.double()).square().mean().sqrt()
        assert error <= NETWORK_LOW_PRECISION * b.double().square().mean().sqrt(), f"{case}: results differ"
    with torch.no_grad():
        suite.measure(f"{case}, forward", _entries(suite, functions, fused, call))
    suite.measure(f"{case}, forward + backward", _entries(suite, functions, fused, both), peaks=True)


def _entries(
    suite: Suite, functions: dict[str, Function], fused: dict[str, Function], call: Function
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, function in functions.items():
        timed = partial(call, function)
        entries.update(suite.options.ours(name, timed) if name in fused else {name: timed})
    return entries


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("junctions", options, picture=True)
    gpu = options.device == "cuda"
    width, side, small, batch = (64, 568, 392, 8) if gpu else (32, 312, 136, 1)
    if options.tiny:
        width, side, small, batch = 8, 28, 20, 1
    types = [torch.bfloat16] if gpu else [torch.float32] if options.quick else [torch.float32, torch.bfloat16]
    layouts = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}
    for dtype in types:
        for layout, form in list(layouts.items())[: 1 if options.quick else None]:

            def draw(*shape: int, dtype: torch.dtype = dtype, form: torch.memory_format = form) -> Tensor:
                tensor = torch.randn(shape, device=options.device).to(dtype)
                return (tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor).requires_grad_()

            what = f"{str(dtype).removeprefix('torch.')}, {layout}"
            x, size = draw(batch, width, side, side), (small, small)
            compare(
                suite,
                f"contracting {batch} x {width}x{side}x{side} -> {small}, {what}",
                {"relu_pool_skip": lambda x, size: ops.relu_pool_skip(x, skip_size=size)},
                contracting_plain,
                (x, size),
                (x,),
            )
            low, skip = draw(batch, 2 * width, small // 2, small // 2), draw(batch, width, side, side)
            weight, bias = draw(2 * width, width, 2, 2), draw(width)
            compare(
                suite,
                f"expanding {batch} x {2 * width}x{small // 2}x{small // 2} + skip, {what}",
                {"up_conv_crop_concat": ops.up_conv_crop_concat},
                expanding_plain,
                (low, weight, bias, skip),
                (low, weight, bias, skip),
            )
            weight = draw(width, width, 3, 3)
            compare(
                suite,
                f"convolution {batch} x {width}x{side}x{side}, {what}",
                {"conv_bias_relu": ops.conv_bias_relu},
                convolution_plain,
                (x, weight, bias),
                (x, weight, bias),
            )
            features, weight, bias = draw(batch, width, small, small), draw(2, width, 1, 1), draw(2)
            target = torch.randint(0, 2, (batch, small, small), device=options.device)
            compare(
                suite,
                f"head and loss {batch} x {width}x{small}x{small}, {what}",
                {"head_cross_entropy": ops.head_cross_entropy},
                head_plain,
                (features, weight, bias, target, torch.rand(batch, small, small, device=options.device)),
                (features, weight, bias),
            )
    suite.finish()


if __name__ == "__main__":
    run(main)
