"""The command line's memory setting: what it does to page faults, and that the user's own settings win."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from unet_fast.cli._memory import keep_freed_memory
done = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.empty(1 << 26, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(done, faults())
"""


def run(**environment: str) -> tuple[bool, int]:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    done, faults = result.stdout.split()
    return done == "True", int(faults)


def test_memory_is_written_again_without_new_pages():
    pytest.importorskip("resource", reason="page faults are not counted on this system")
    done, faults = run(NUMPY_MADVISE_HUGEPAGE="0")
    if not done:
        pytest.skip("this C library has no mallopt, or malloc is set by the environment")
    assert faults < 2000  # ten times 16,384 pages of 4 KiB otherwise


def test_the_settings_of_the_user_win():
    pytest.importorskip("resource", reason="page faults are not counted on this system")
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        done, faults = run(NUMPY_MADVISE_HUGEPAGE="0", **{name: "100000"})
        assert not done
        assert faults > 10000
