"""Forward and backward of the weighted loss on logits against torch's cross-entropy times a weight, eager and compiled.

python -m benchmarks.bench_weighted_cross_entropy
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import Candidate, Options, Suite, run, sweep
from unet_fast.ops import weighted_cross_entropy
from unet_fast.ops._tolerances import CROSS_ENTROPY

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def eager(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What users write today."""
    return (F.cross_entropy(logits, target, reduction="none") * weight).mean()


def step(loss: Loss, leaf: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        # the loss of a network sees no leaf; made anew, since a graph captures no backward of what was made before it
        torch.autograd.grad(loss(leaf.view_as(leaf), target, weight), leaf)

    return run


def problem(
    options: Options, batch: int, classes: int, side: int, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], float]:
    """Logits, target and weight, and the least bytes: all three read, the gradient written."""
    logits = torch.randn(batch, classes, side, side, device=options.device)
    leaf = logits.to(dtype, memory_format=layout).requires_grad_()
    target = torch.randint(0, classes, (batch, side, side), device=options.device)
    weight = torch.rand(batch, side, side, device=options.device) + 1
    return (leaf, target, weight), 2 * leaf.nbytes + target.nbytes + weight.nbytes


def main(options: Options) -> None:
    torch.manual_seed(0)

    def sizes(batch: int, side: int) -> tuple[dict[str, Any], float]:
        tensors, least = problem(options, batch, 2, side, torch.float32, torch.contiguous_format)
        ours = options.ours("weighted_cross_entropy", step(weighted_cross_entropy, *tensors))
        return {**ours, "F.cross_entropy * weight": step(eager, *tensors)}, least

    sweep("weighted_cross_entropy", options, 1 << (30 if options.device == "cuda" else 24), sizes)

    suite, side = Suite("weighted_cross_entropy", options), options.side(512)
    many = 64 if options.device == "cuda" else 4
    for batch, classes, dtype, layout in (
        (1, 2, torch.float32, torch.contiguous_format),
        (many, 2, torch.float32, torch.contiguous_format),
        (many, 2, torch.float32, torch.channels_last),
        (many, 2, torch.bfloat16, torch.channels_last),
        (1, 8, torch.float32, torch.contiguous_format),
    ):
        tensors, least = problem(options, batch, classes, side, dtype, layout)
        truth = eager(tensors[0].detach().double(), *tensors[1:])
        torch.testing.assert_close(weighted_cross_entropy(*tensors).double(), truth, **CROSS_ENTROPY[dtype])
        name = (
            f"{batch}x{classes}x{side}x{side} {str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}"
        )
        suite.measure(
            name,
            {
                **options.ours("weighted_cross_entropy", step(weighted_cross_entropy, *tensors)),
                "F.cross_entropy * weight": step(eager, *tensors),
                "the same, torch.compile": step(options.compile(eager), *tensors),
                "copy of the logits": Candidate(lambda leaf=tensors[0]: leaf.detach().clone(), role="floor"),
            },
            least_bytes=least,
        )
    suite.finish()


if __name__ == "__main__":
    run(main)
