"""Memory that the CPU operators keep: no two tensors share it, freed maps are used again, and all of it can be turned off.

In processes of their own, as all other tests run without: they fill what torch allocates with NaN. Builds for AddressSanitizer
keep none, so that it sees every block.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")

DISJOINT = """
import threading, torch
from unet_fast.ops import bias_relu

def new(floats):
    return bias_relu(torch.zeros(1, 1, 1, floats), torch.zeros(1))

def come_and_go(seed):
    # tensors of all sizes, each of which keeps its own numbers
    generator = torch.Generator().manual_seed(seed)
    alive = []
    for number in range(150):
        floats = int(torch.randint(1 << 14, 1 << 18, (), generator=generator))
        alive.append((number, new(floats).fill_(number)))
        while len(alive) > int(torch.randint(1, 12, (), generator=generator)):
            value, tensor = alive.pop(int(torch.randint(len(alive), (), generator=generator)))
            assert tensor.min() == tensor.max() == value
            del tensor
    assert all((tensor == value).all() for value, tensor in alive)
    done.append(seed)

done = []
come_and_go(0)
threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(1, 4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert sorted(done) == [0, 1, 2, 3]

kept = [new(1 << 18) for _ in range(3)]
assert not kept[0].untyped_storage().resizable()  # ours
place = kept[1].data_ptr()
del kept[1]
assert new(1 << 18).data_ptr() <= place  # the lowest gap that is large enough

for layout in (torch.contiguous_format, torch.channels_last):
    x = torch.zeros(2, 32, 65, 63).contiguous(memory_format=layout)
    out = bias_relu(x, torch.zeros(32))
    assert out.stride() == x.stride() and out.is_contiguous(memory_format=layout)
"""

LIMIT = """
import os, sys, torch, unet_fast as uf

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

def new(megabytes):
    return uf.ops.bias_relu(zeros[..., : megabytes << 18], torch.zeros(1))

zeros = torch.zeros(1, 1, 1, 32 << 18)
new(1)
alive = [new(32) for _ in range(4)]
if os.fork() == 0:  # a child has the same numbers, and memory of its own
    good = all(bool((t == 0).all()) for t in alive)
    own = new(32).fill_(1)
    del alive
    os._exit(0 if good and bool((new(16) == 0).all()) and bool((own == 1).all()) else 1)
child = os.waitpid(-1, 0)[1]
assert child == 0 and all(bool((t == 0).all()) for t in alive)
resizable = alive[-1].untyped_storage().resizable()
full = resident()
del alive
print(full - resident(), resizable)
last = new(1)  # outlives what freed it
"""


def run(code: str, megabytes: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"UNET_FAST_KEPT_MEMORY": megabytes},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_two_tensors_share_memory() -> None:
    run(DISJOINT, "256")


@pytest.mark.parametrize("megabytes", [0, 16])
def test_limit_and_fork(megabytes: int) -> None:
    """What is free stays up to the limit; a tensor that outlives the interpreter's end does no harm."""
    freed, resizable = run(LIMIT, str(megabytes))
    expected = (128 - megabytes) * 1.048576
    assert expected - 8 < float(freed) < expected + 8
    assert resizable == str(megabytes == 0)  # else it is a block of ours
