"""What a call adds to the memory of its process, in a process of its own: ``python -m benchmarks.resident NAME CALL BASE SIDE PADDING``.

Prints as JSON: ``resident``, by how much the resident memory was larger at its peak than before the first of a few calls, and
``record``, what torch's profiler saw alive at once, both in 10^6 bytes. The profiler sees what torch allocates, so
``UNET_FAST_KEPT_MEMORY=0`` has to be set for the second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import unet_fast as uf
from benchmarks.memory import peak_megabytes

CALLS = 4


def training_step(net: torch.nn.Module, x: torch.Tensor, *, fused_loss: bool, amp: bool = False) -> Callable[[], None]:
    """Forward, loss, backward and SGD; ``amp``: in bfloat16."""
    size = net.output_size(x.shape[-1])  # type: ignore[operator]
    target = torch.randint(0, 2, (len(x), size, size))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = net.loss(x, target) if fused_loss else F.cross_entropy(net(x).float(), target)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def status(name: str) -> float:
    """A line of /proc/self/status, in 10^6 bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def main(name: str, call: str, base: str, side: str, padding: str) -> None:
    """Measure one network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours = name == "ours"
    net = uf.UNet(base_channels=int(base), padding=padding, fused="auto" if ours else False)
    net = net.to(memory_format=torch.channels_last)
    x = torch.rand(1, 1, int(side), int(side)).contiguous(memory_format=torch.channels_last)
    function = training_step(net, x, fused_loss=ours) if call == "step" else lambda: net(x)
    with torch.set_grad_enabled(call == "step"):
        before = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        for _ in range(CALLS):
            function()
        resident = status("VmHWM") - before
        print(json.dumps({"resident": resident, "record": peak_megabytes(function, "cpu")}))


def measure(name: str, call: str, base: int, side: int, padding: str) -> dict[str, float]:
    """``resident`` and ``record``, each from a process that is as it needs it."""

    def child(environment: dict[str, str]) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.resident", name, call, str(base), str(side), padding]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return {"resident": child({})["resident"], "record": child({"UNET_FAST_KEPT_MEMORY": "0"})["record"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
