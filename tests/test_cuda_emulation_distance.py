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


def few_cells(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Maps in which the nearest instances are far away, by name."""
    maps = {name: torch.zeros(shape, dtype=torch.int32) for name in ("none", "one", "two", "diagonal", "nested")}
    maps["one"][0, ..., 0, 0] = 5
    maps["two"][0, ..., 0, 3], maps["two"][0, ..., -1, -1] = 5, 9
    rows, columns = shape[-2:]
    at = torch.arange(min(rows, columns))
    maps["diagonal"][..., at, at], maps["diagonal"][..., rows - 1, 1] = 3, 4
    # a frame of one label around a strip of another, nearer to the middle only there
    maps["nested"][..., 0], maps["nested"][..., -1], maps["nested"][..., 0, columns // 3] = 1, 1, 2
    return maps


@pytest.mark.parametrize("spacing", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(2, 9, 300), (1, 40, 129), (2, 3, 140, 150)])
def test_few_cells_in_long_lines(shape, spacing, rng):
    """Blocks of columns, or of rows in the middle pass of a volume, are passed over; nothing that matters is."""
    cuda_emulation.load()
    steps = [spacing, *[1.0] * (len(shape) - 2)]
    maps = {"sparse": torch.from_numpy(random_instances(rng, shape, 6, 0.002)), **few_cells(shape)}
    for name, labels in maps.items():
        got, truth = (getattr(torch.ops, n).nearest_two(labels, steps) for n in ("unet_fast_emulated", "unet_fast"))
        torch.testing.assert_close(got, truth, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        mask = labels == 0
        got, truth = (
            getattr(torch.ops, n).distance_transform(mask, steps) for n in ("unet_fast_emulated", "unet_fast")
        )
        torch.testing.assert_close(got, truth, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        if labels.dim() == 3 and spacing == 1.0:
            arguments = (labels, 10.0, 30.0, None, True, True)
            got, truth = (getattr(torch.ops, n).weight_map(*arguments) for n in ("unet_fast_emulated", "unet_fast"))
            torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 513, 5), (1, 1700, 9), (1, 65535, 1), (1, 70000, 2), (1, 600, 2, 3)])
def test_scans_of_several_chunks(shape, rng):
    """Lines of more than 512 pixels, and of more than 16 bits of steps; labels that only other chunks have."""
    cuda_emulation.load()
    labels = torch.from_numpy(random_instances(rng, shape, 4, 0.001)).long()
    far = torch.zeros_like(labels)
    far[:, 0], far[:, -1] = 7, 8
    ones = [1.0] * (len(shape) - 1)
    for each in (labels, far, torch.zeros_like(labels)):
        got, truth = (getattr(torch.ops, n).nearest_two(each, ones) for n in ("unet_fast_emulated", "unet_fast"))
        torch.testing.assert_close(got, truth, **EXACT)
        mask = each == 0
        got, truth = (getattr(torch.ops, n).distance_transform(mask, ones) for n in ("unet_fast_emulated", "unet_fast"))
        torch.testing.assert_close(got, truth, **EXACT)
        if each.dim() == 3:
            for balanced in (False, True):
                arguments = (each, 10.0, 5.0, None, balanced, False)
                got, truth = (getattr(torch.ops, n).weight_map(*arguments) for n in ("unet_fast_emulated", "unet_fast"))
                torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)
