"""The benchmark of an operator that has no file of its own: the samples of its record against its reference, and the limit."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import Options, sweep
from unet_fast.ops._record import OPS, Draw, as_list


def main(name: str, options: Options) -> None:
    """Forward, over batches and sides; the least bytes are those of the record."""
    op = OPS[name]
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32

    def make(batch: int, side: int) -> tuple[dict[str, Any], float]:
        draw = Draw(torch.Generator().manual_seed(0), dtype, device=options.device)
        tensors = op.sample(draw, batch, side, side)
        op.check(op.sample(draw, 1, 16, 16))
        candidates = {
            **options.ours(name, lambda: op.call(*tensors)),
            "reference": lambda: op.truth(*tensors),
        }
        return candidates, float(op.least_bytes(list(tensors), as_list(op.call(*tensors))))

    sweep(name, options, 1 << (26 if options.device == "cuda" else 22), make)
