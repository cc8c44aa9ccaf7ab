"""Memory that the CPU operators keep: no two tensors share it, freed maps are used again, and all of it can be turned off."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from tests.places import needs
from unet_fast.ops import bias_relu

pytestmark = [pytest.mark.kernels, needs("cpp")]


def new(floats: int) -> torch.Tensor:
    """A result of so many float32 numbers."""
    return bias_relu(torch.zeros(1, 1, 1, floats), torch.zeros(1))


def check_disjoint(seed: int) -> None:
    """Tensors of all sizes come and go, and each keeps its own numbers."""
    generator = torch.Generator().manual_seed(seed)
    alive: list[tuple[int, torch.Tensor]] = []
    for number in range(120):
        floats = int(torch.randint(1 << 14, 1 << 19, (), generator=generator))
        alive.append((number, new(floats).fill_(number)))
        while len(alive) > int(torch.randint(1, 12, (), generator=generator)):
            value, tensor = alive.pop(int(torch.randint(len(alive), (), generator=generator)))
            assert tensor.min() == tensor.max() == value
            del tensor
    assert all((tensor == value).all() for value, tensor in alive)


def test_no_two_tensors_share_memory(generator: torch.Generator) -> None:
    check_disjoint(int(torch.randint(1 << 30, (), generator=generator)))


def test_threads() -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            check_disjoint(seed)
        except BaseException as error:  # reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_freed_memory_is_used_again() -> None:
    kept = [new(1 << 18) for _ in range(3)]
    place = kept[1].data_ptr()
    del kept[1]
    assert new(1 << 18).data_ptr() <= place  # the lowest gap that is large enough


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_have_the_strides_of_torch(layout: torch.memory_format) -> None:
    x = torch.zeros(2, 32, 65, 63).contiguous(memory_format=layout)
    out = bias_relu(x, torch.zeros(32))
    assert out.stride() == x.stride() and out.is_contiguous(memory_format=layout)


CODE = """
import os, sys, torch, unet_fast as uf

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

def new(megabytes):
    return uf.ops.bias_relu(zeros[..., : megabytes << 18], torch.zeros(1))

zeros = torch.zeros(1, 1, 1, 64 << 18)
new(1)
alive = [new(32) for _ in range(4)]
if os.fork() == 0:  # a child has the same numbers, and memory of its own
    good = all(bool((t == 0).all()) for t in alive)
    own = new(32).fill_(1)
    del alive
    os._exit(0 if good and bool((new(16) == 0).all()) and bool((own == 1).all()) else 1)
child = os.waitpid(-1, 0)[1]
assert all(bool((t == 0).all()) for t in alive)
last = alive[-1].untyped_storage().resizable()
full = resident()
del alive
print(full - resident(), child, last)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")
@pytest.mark.parametrize(("megabytes", "stays"), [("0", 0), ("16", 16)])
def test_limit_and_fork(megabytes: str, stays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free stays up to the limit; a tensor that outlives the interpreter's end does no harm."""
    monkeypatch.setenv("UNET_FAST_KEPT_MEMORY", megabytes)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    freed, child, resizable = done.stdout.split()
    assert child == "0"
    expected = (128 - stays) * 1.048576
    assert expected - 8 < float(freed) < expected + 8
    assert resizable == str(megabytes == "0")  # else it is a block of ours
