"""Forward and backward of the weighted loss on 512x512 logits against torch's eager cross-entropy times a weight.

python -m benchmarks.bench_weighted_cross_entropy
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.common import Suite
from tests.tolerances import CROSS_ENTROPY
from unet_fast.ops import weighted_cross_entropy

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def eager(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What users write today."""
    return (F.cross_entropy(logits, target, reduction="none") * weight).mean()


def step(loss: Loss, leaf: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> Callable[[], None]:
    logits = leaf.view_as(leaf)  # the loss of a network sees no leaf

    def run() -> None:
        torch.autograd.grad(loss(logits, target, weight), logits)

    return run


def main() -> None:
    suite = Suite("weighted_cross_entropy")
    generator = torch.Generator().manual_seed(0)
    for batch, classes, dtype, layout in (
        (1, 2, torch.float32, torch.contiguous_format),
        (4, 2, torch.float32, torch.contiguous_format),
        (4, 2, torch.float32, torch.channels_last),
        (4, 2, torch.bfloat16, torch.channels_last),
        (1, 8, torch.float32, torch.contiguous_format),
    ):
        logits = torch.randn(batch, classes, 512, 512, generator=generator)
        leaf = logits.to(dtype, memory_format=layout).requires_grad_()
        target = torch.randint(0, classes, (batch, 512, 512), generator=generator)
        weight = torch.rand(batch, 512, 512, generator=generator) + 1
        truth = eager(leaf.detach().double(), target, weight)
        torch.testing.assert_close(weighted_cross_entropy(leaf, target, weight).double(), truth, **CROSS_ENTROPY[dtype])
        name = f"{batch}x{classes}x512x512 {str(dtype).removeprefix('torch.')} {str(layout).removeprefix('torch.')}"
        suite.measure(
            name,
            {
                "weighted_cross_entropy": step(weighted_cross_entropy, leaf, target, weight),
                "F.cross_entropy * weight": step(eager, leaf, target, weight),
                "copy of the logits": lambda leaf=leaf: leaf.detach().clone(),
            },
        )
    suite.finish()


if __name__ == "__main__":
    main()
