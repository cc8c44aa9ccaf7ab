"""The 3x3 convolution of a CPU against torch's, layer by layer: forward, and either gradient by itself.

One thread, which is where the algorithm shows; layers are those of a valid U-Net of 380 pixels and 32 channels.

python -m benchmarks.bench_conv3x3
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Options, Suite, one_thread, run
from unet_fast import ops

LAYERS = [(32, 32, 378), (64, 64, 186), (128, 128, 90), (256, 256, 42), (512, 512, 18), (128, 64, 88)]
LAST, PLANAR = torch.channels_last, torch.contiguous_format
GRADIENTS = {"input gradient": (True, False, False), "weight gradient": (False, True, True)}


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution and ReLU by torch."""
    return F.relu(F.conv2d(x, weight, bias), inplace=True)


def plain_gradients(grad: Tensor, x: Tensor, weight: Tensor, out: Tensor, wanted: tuple[bool, ...]) -> list[Tensor]:
    """What autograd calls behind :func:`plain`."""
    grad = torch.ops.aten.threshold_backward(grad, out, 0)
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, list(wanted)
    )
    return [gradient for gradient in found if gradient is not None]


def our_gradients(grad: Tensor, x: Tensor, weight: Tensor, out: Tensor, wanted: tuple[bool, ...]) -> list[Tensor]:
    """The same by one operator; what is not wanted is empty."""
    found = torch.ops.unet_fast.conv3x3_backward(grad, [x], weight, out, 0, 0.0, *wanted)
    return [gradient for gradient in found if gradient.numel()]


def layer(suite: Suite, inputs: int, outputs: int, side: int) -> None:
    """Convolution and ReLU of one layer in both layouts of torch."""

    def draw(form: torch.memory_format) -> list[Tensor]:
        torch.manual_seed(0)
        x, weight = torch.randn(1, inputs, side, side), torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
        grad = torch.randn(1, outputs, side - 2, side - 2)
        return [tensor.contiguous(memory_format=form) for tensor in (x, weight, grad)] + [torch.randn(outputs)]

    ours = partial(ops.conv3x3, activation="relu")
    case = f"{inputs} -> {outputs} channels, {side}x{side}"
    drawn = {"torch, channels-last": draw(LAST), "torch, NCHW": draw(PLANAR)}
    x, weight, grad, bias = drawn["torch, channels-last"]
    torch.testing.assert_close(ours(x, weight, bias), plain(x, weight, bias), rtol=1e-3, atol=1e-4)
    calls: dict[str, Any] = suite.options.ours("conv3x3", partial(ours, x, weight, bias))
    calls |= {name: partial(plain, x, weight, bias) for name, (x, weight, _, bias) in drawn.items()}
    suite.measure(f"{case}, forward", calls, rounds=7)
    for name, wanted in GRADIENTS.items():
        outs = {form: plain(x, weight, bias) for form, (x, weight, _, bias) in drawn.items()}
        mask = outs["torch, channels-last"]
        got, want = (function(grad, x, weight, mask, wanted) for function in (our_gradients, plain_gradients))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
        calls = suite.options.ours("conv3x3", partial(our_gradients, grad, x, weight, mask, wanted), name)
        for form, (x_, weight_, grad_, _) in drawn.items():
            calls[form] = partial(plain_gradients, grad_, x_, weight_, outs[form], wanted)
        suite.measure(f"{case}, {name}", calls, rounds=7)


def main(options: Options) -> None:
    """One result file."""
    if options.device != "cpu":
        return
    suite = Suite("conv3x3", options, picture=True)
    with one_thread(), torch.no_grad():
        for inputs, outputs, side in [(16, 16, 20)] if options.tiny else LAYERS[: 2 if options.quick else None]:
            layer(suite, inputs, outputs, side)
    suite.finish()


if __name__ == "__main__":
    run(main)
