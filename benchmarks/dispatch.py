"""What a call costs before any pixel is touched: the smallest tensors, measured by pytest-benchmark.

python -m pytest benchmarks/dispatch.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unet_fast.ops._record import OPS, Draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensors() -> dict[str, torch.Tensor]:
    make: dict[str, Any] = {"device": DEVICE}
    return {
        "skip": torch.rand(1, 2, 4, 4, **make),
        "up": torch.rand(1, 2, 2, 2, **make),
        "image": torch.rand(1, 1, 4, 4, **make),
        "logits": torch.rand(1, 2, 4, 4, **make),
        "target": torch.zeros(1, 4, 4, dtype=torch.int64, **make),
        "kernel": torch.rand(2, 2, 2, 2, **make),
        "features": torch.rand(1, 2, 2, 2, **make),
    }


Call = Callable[[dict[str, torch.Tensor]], Any]
PEERS: dict[str, Call] = {
    "torch: F.relu": lambda t: F.relu(t["skip"]),
    "torch: slice + torch.cat": lambda t: torch.cat([t["skip"][:, :, 1:3, 1:3], t["up"]], 1),
    "torch: F.cross_entropy": lambda t: F.cross_entropy(t["logits"], t["target"]),
    "torch: F.grid_sample": lambda t: F.grid_sample(t["image"], t["image"].expand(2, 1, 4, 4).permute(1, 2, 3, 0)),
    "torch: F.conv_transpose2d": lambda t: F.conv_transpose2d(t["features"], t["kernel"], stride=2),
}


@pytest.mark.parametrize("name", [*PEERS, *OPS])
def test_dispatch(benchmark: Any, name: str) -> None:
    if name in OPS:
        given: Any = OPS[name].sample(Draw(torch.default_generator, device=DEVICE), 1, 4, 5)
    else:
        given = (tensors(),)
    call = OPS[name].call if name in OPS else PEERS[name]

    def run() -> None:
        call(*given)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        benchmark(run)
