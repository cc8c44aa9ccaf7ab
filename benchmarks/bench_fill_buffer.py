"""fill_buffer behind relu_pool_skip against an assignment to the same buffer and against torch's layers, forward and backward.

A level of a U-Net that up-samples by interpolation: ReLU, max-pool, and the join of the skip with a map of half its size.

python -m benchmarks.bench_fill_buffer
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Candidate, Options, Suite, run
from unet_fast.ops import fill_buffer, relu_pool_skip

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
CASES = [(32, 128), (128, 32)]  # channels and side of the skip
Pair = tuple[Tensor, Tensor]  # the pooled and the joined map


def filled(x: Tensor, low: Tensor, write: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    pooled, buffer = relu_pool_skip(x, skip_size=x.shape[2:], up_channels=low.shape[1])
    return pooled, write(buffer, F.interpolate(low, scale_factor=2))


def assigned(buffer: Tensor, up: Tensor) -> Tensor:
    buffer[:, -up.shape[1] :] = up
    return buffer


def plain(x: Tensor, low: Tensor) -> Pair:
    skip = F.relu(x)
    return F.max_pool2d(skip, 2), torch.cat([skip, F.interpolate(low, scale_factor=2)], 1)


def main(options: Options) -> None:
    torch.manual_seed(0)
    suite = Suite("fill_buffer", options)
    ours = partial(filled, write=partial(fill_buffer, fresh=True))
    for channels, side in [(4, 12)] if options.tiny else CASES[: 1 if options.quick else None]:
        for layout, form in LAYOUTS.items():

            def draw(c: int, s: int, form: torch.memory_format = form) -> Tensor:
                return torch.randn(2, c, s, s, device=options.device).to(memory_format=form).requires_grad_()

            leaves = draw(channels, side), draw(channels, side // 2)
            truth = plain(*leaves)
            torch.testing.assert_close(ours(*leaves), truth)
            grads = [torch.randn_like(tensor) for tensor in truth]

            def step(join: Callable[..., Pair], leaves: Pair = leaves, grads: list[Tensor] = grads) -> None:
                torch.autograd.grad(join(*leaves), leaves, grads)

            timed = {
                "relu_pool_skip, fill_buffer": Candidate(partial(step, ours), role="ours", op="fill_buffer"),
                "relu_pool_skip, assignment": Candidate(partial(step, partial(filled, write=assigned))),
                "torch's layers": Candidate(partial(step, plain)),
            }
            suite.measure(f"2 x {channels}x{side}x{side}, {layout}, forward + backward", timed)
    suite.finish()


if __name__ == "__main__":
    run(main)
