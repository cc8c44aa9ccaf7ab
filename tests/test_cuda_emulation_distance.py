"""The CUDA kernels of the distance ops, run on the CPU by the stand-in of tests/cuda_emulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unet_fast.ops  # noqa: F401  torch.ops.unet_fast, which the emulated kernels are compared with
from tests import cuda_emulation
from tests.instance_maps import random_instances
from tests.tolerances import EXACT

if cuda_emulation.COMPILER is None:
    pytest.skip("no C++ compiler: the CUDA kernels were not run on the CPU", allow_module_level=True)

# What only the CPU kernels do (look at the labels and complain), what is slow one thread after the other, and what does
# not depend on the kernel.
LEFT_OUT = ["bad_", "long_sides", "large_blocks", "largest_integer", "registration", "backends", "numpy", "threads"]


def test_the_tests_of_the_ops_pass():
    cuda_emulation.library()
    files = [f"tests/test_{op}.py" for op in ("nearest_two", "distance_transform", "weight_map")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda_emulation.plugin", "-p", "no:cacheprovider"]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([*command, *files, "-k", chosen], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("bad", [-1, -7, 2**31])
def test_bad_labels_make_their_surroundings_nan(bad, rng):
    cuda_emulation.load()
    labels = torch.from_numpy(random_instances(rng, (2, 30, 40), 3, 0.05)).long()
    truth = torch.ops.unet_fast.nearest_two(labels, [1.0, 1.0])
    labels[0, 11, 17] = bad
    d1, d2 = torch.ops.unet_fast_emulated.nearest_two(labels, [1.0, 1.0])
    weights = torch.ops.unet_fast_emulated.weight_map(labels, 10.0, 5.0, None, False, False)
    for result in (d1[0], d2[0], weights[0]):
        assert result[11, 17].isnan() and not result.isnan().all()
    torch.testing.assert_close((d1[1], d2[1]), (truth[0][1], truth[1][1]), **EXACT)
    assert not weights[1].isnan().any()
