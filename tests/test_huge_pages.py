"""Large fresh results lie in memory that asks for huge pages: else most of the time of a copying op goes into page faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import unet_fast.numpy
from tests import processes
from unet_fast.ops import bias_relu, distance_transform

SMAPS = Path("/proc/self/smaps")
SIDE = 4096  # 64 MB in float32

pytestmark = pytest.mark.skipif(
    not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this kernel has no transparent huge pages",
)


def asks_for_huge_pages(array: np.ndarray) -> bool:
    """Whether the mapping that holds the array's middle carries the flag of MADV_HUGEPAGE."""
    address = array.ctypes.data + array.nbytes // 2
    inside = False
    for line in SMAPS.read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"no mapping holds {address:#x}")


def alone(check: Callable[[], None]) -> None:
    """Run it in a process of its own, where no earlier test has left free memory that malloc would hand out again."""
    code = f"from {__name__} import {check.__name__} as check; check()"
    done = processes.run("-c", code, warm="torch")
    assert done.returncode == 0, done.stderr


def check_operators() -> None:
    rectified = bias_relu(torch.ones(1, 1, SIDE, SIDE))
    assert asks_for_huge_pages(rectified.numpy())
    assert rectified.eq(1).all()
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    assert asks_for_huge_pages(distance_transform(mask).numpy())
    assert not asks_for_huge_pages(torch.ones(SIDE, SIDE).numpy())  # torch by itself does not


def check_the_numpy_module() -> None:
    mask = np.ones((SIDE, SIDE), bool)
    assert asks_for_huge_pages(unet_fast.numpy.distance_transform(mask))


def test_results_of_operators():
    alone(check_operators)


def test_results_of_the_numpy_module():
    alone(check_the_numpy_module)
