"""crop_concat against slice and torch.cat, eager and compiled, and the limit: a copy of the bytes that the op must move.

The gradient that comes in is a dense random tensor in the layout of the result, as a convolution hands it back. Where nothing
is cropped, the gradients of both inputs are views, in torch as well: forward + backward is then one copy and two calls.

python -m benchmarks.bench_crop_concat
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast import ops, reference

CASES = [  # skip (C, H), up (C, h): the two widest concats of a 572 tile, and a same-padding one
    ((64, 568), (64, 392)),
    ((128, 280), (128, 200)),
    ((64, 192), (64, 192)),
]
# channels and side of the up-sampled map, whose skip is larger by 2: where what a call costs counts, and where the copies do
SMALL = [(16, 8), (32, 32), (32, 128)]
JOINS = {"up first": ("up_first", None), "padded with zeros": ("skip_first", "zeros")}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def by_torch(skip: Tensor, up: Tensor, order: str, padding: str | None) -> Tensor:
    """As networks write it."""
    high, wide = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
    if padding is None:
        skip = skip[:, :, high // 2 : high // 2 + up.shape[2], wide // 2 : wide // 2 + up.shape[3]]
    else:
        up = F.pad(up, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
    return torch.cat([skip, up] if order == "skip_first" else [up, skip], 1)


def compare_join(suite: Suite, channels: int, side: int, layout: str, form: torch.memory_format) -> None:
    """The other joins, forward and backward, in the dtype of autocast."""
    for name, (order, padding) in JOINS.items():
        shapes = [(2, channels, side + 2, side + 2), (2, channels, side, side)]
        maps = [torch.rand(s, dtype=torch.bfloat16, device=suite.options.device) for s in shapes]
        leaves = [tensor.to(memory_format=form).requires_grad_() for tensor in maps]
        ours, theirs = (partial(f, order=order, padding=padding) for f in (ops.crop_concat, by_torch))
        truth = theirs(*leaves)
        torch.testing.assert_close(ours(*leaves), truth, rtol=0, atol=0)
        grad = torch.rand(truth.shape, device=suite.options.device).to(truth.dtype).to(memory_format=form)

        def both(function: Any, leaves: list[Tensor] = leaves, grad: Tensor = grad) -> Any:
            return torch.autograd.grad(function(*leaves), leaves, grad)

        suite.measure(
            f"{name}, 2 x {channels}x{side}x{side} twice, bfloat16, {layout}, forward + backward",
            {**suite.options.ours("crop_concat", partial(both, ours)), "torch": partial(both, theirs)},
        )


def main(options: Options) -> None:
    suite = Suite("crop_concat", options)
    # a GPU is filled by the batch of a training step in the dtype of autocast
    batch, dtype = (8, torch.bfloat16) if options.device == "cuda" else (1, torch.float32)
    cases = [((4, 20), (3, 12))] if options.tiny else CASES
    for (c1, large), (c2, small) in cases:
        for name, form in LAYOUTS.items():
            make = {"dtype": dtype, "device": options.device}
            skip, up = torch.rand(batch, c1, large, large, **make), torch.rand(batch, c2, small, small, **make)
            skip, up = (t.to(memory_format=form).requires_grad_() for t in (skip, up))
            grad = torch.rand(batch, c1 + c2, small, small, **make).to(memory_format=form)
            torch.testing.assert_close(ops.crop_concat(skip, up), reference.crop_concat(skip, up))
            buffer = torch.empty_like(grad)
            case = f"{batch} x {c1}x{large}x{large} + {c2}x{small}x{small}, {name}"
            size = grad.element_size()
            compiled = options.compile(reference.crop_concat)
            with torch.no_grad():
                suite.measure(
                    f"{case}, forward",
                    {
                        **options.ours("crop_concat", lambda s=skip, u=up: ops.crop_concat(s, u)),
                        "slice + torch.cat": lambda s=skip, u=up: reference.crop_concat(s, u),
                        "the same, torch.compile": lambda s=skip, u=up, c=compiled: c(s, u),
                        "copy of the result": Candidate(lambda b=buffer, g=grad: b.copy_(g), role="floor"),
                    },
                    least_bytes=2 * grad.numel() * size,
                )

            def both(function: Any, s=skip, u=up, g=grad) -> Any:
                return torch.autograd.grad(function(s, u), (s, u), g)

            suite.measure(
                f"{case}, forward + backward",
                {
                    **options.ours("crop_concat", lambda b=both: b(ops.crop_concat)),
                    "slice + torch.cat": lambda b=both: b(reference.crop_concat),
                    "the same, torch.compile": lambda b=both, c=compiled: b(c),
                },
                least_bytes=(2 * grad.numel() + grad.numel() + skip.numel() + up.numel()) * size,
            )
    for channels, side in SMALL[:1] if options.tiny or options.quick else SMALL:
        for name, form in LAYOUTS.items():
            compare_join(suite, channels, side, name, form)
    suite.finish()

    def sizes(n: int, side: int) -> tuple[dict[str, Any], float]:
        skip, up = (torch.rand(n, 16, s, s, device=options.device) for s in (side, side - 32))
        ours = options.ours("crop_concat", lambda: ops.crop_concat(skip, up))
        return {**ours, "slice + torch.cat": lambda: reference.crop_concat(skip, up)}, 2 * 4.0 * 2 * up.numel()

    with torch.no_grad():  # 16 + 16 channels
        sweep("crop_concat", options, 1 << (26 if options.device == "cuda" else 22), sizes)


if __name__ == "__main__":
    run(main)
