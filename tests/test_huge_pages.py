"""Large fresh results lie in memory that asks for huge pages: else most of the time of a copying op goes into page faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import unet_fast.numpy
from unet_fast.ops import crop_concat, distance_transform

SMAPS = Path("/proc/self/smaps")
SIDE = 4096  # 64 MB in float32, which the C library never takes from memory that it kept

pytestmark = pytest.mark.skipif(
    not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this kernel has no transparent huge pages",
)


def asks_for_huge_pages(address: int) -> bool:
    """Whether the mapping that holds the address carries the flag of MADV_HUGEPAGE."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"no mapping holds {address:#x}")


def middle(array: np.ndarray) -> int:
    return array.ctypes.data + array.nbytes // 2


def test_results_of_operators(monkeypatch):
    # memory that torch.empty has filled has its pages already, and is left as it is
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    half = torch.ones(1, 1, SIDE // 2, SIDE)
    joined = crop_concat(half, half)
    assert asks_for_huge_pages(middle(joined.numpy()))
    assert joined.eq(1).all()
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    assert asks_for_huge_pages(middle(distance_transform(mask).numpy()))
    assert not asks_for_huge_pages(middle(torch.ones(SIDE, SIDE).numpy()))  # torch by itself does not


def test_results_of_the_numpy_module():
    mask = np.ones((SIDE, SIDE), bool)
    assert asks_for_huge_pages(middle(unet_fast.numpy.distance_transform(mask)))
