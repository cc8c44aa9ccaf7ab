"""From how many tiles on our 3x3 convolution is faster than torch's, by channels, layout and instruction set of a CPU.

Writes the table that "auto" reads (least_tiles in unet_fast/ops/_convolution.py), which benchmarks/backends.py puts into the
package. One thread. The instruction sets that are wider than one are hidden from our kernels, oneDNN's and torch's own.

python -m benchmarks.bench_conv3x3_choice [AVX-512 | AVX2 | plain]
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.bench_conv3x3_networks import HELD
from benchmarks.common import RESULTS, Options, conditions, machine_name, one_thread, parse
from unet_fast.ops import _convolution, conv3x3, use_convolution

NAME = "convolution_choice"
LEVELS = {
    "AVX-512": {},
    "AVX2": HELD,
    "plain": {"UNET_FAST_CPU_LEVEL": "plain", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
# where a class of channels begins: full and hardly begun vectors of 8 and of 16, and inputs that have a direct form
INPUTS = (1, 3, 5, 8, 12, 16, 17, 24, 32, 33, 64, 128)
OUTPUTS = (1, 8, 12, 16, 17, 24, 32, 33, 64, 128)
SIDES = (1, 2, 3, 4, 8, 16)  # tiles along an image
SECONDS = 2e-3  # that a candidate is repeated for, at least once a round
ROUNDS = 4
MOST_WORK = 1 << 20  # tiles x inputs x outputs from which on nobody asks


def best(call: Callable[[], object], before: float) -> float:
    """Seconds of a call, the smaller one of ``before`` and the mean of as many calls as :data:`SECONDS` hold."""
    began, count = time.process_time(), 0
    while True:
        call()
        count += 1
        taken = time.process_time() - began
        if taken >= SECONDS:
            return min(before, taken / count)


def ratio(inputs: int, outputs: int, side: int, layout: torch.memory_format, training: bool) -> float:
    """Time of ours over that of torch's for images of ``side`` x ``side`` tiles."""
    size = side * _convolution.TILE + 2
    x = torch.randn(1, inputs, size, size).contiguous(memory_format=layout)
    weight = torch.empty(outputs, inputs, 3, 3, memory_format=layout).normal_()
    x, weight, bias = (t.requires_grad_(training) for t in (x, weight, torch.randn(outputs)))

    def ours() -> torch.Tensor:
        return conv3x3(x, weight, bias, activation="relu")

    def torchs() -> torch.Tensor:
        return F.relu(F.conv2d(x, weight, bias), inplace=True)

    def run(function: Callable[[], torch.Tensor]) -> object:
        out = function()
        return torch.autograd.grad(out, (x, weight, bias), out.detach()) if training else out

    times = [math.inf, math.inf]
    with use_convolution("winograd"), torch.set_grad_enabled(training):
        for _ in range(ROUNDS):  # the first of which allocates
            times = [best(lambda f=f: run(f), t) for f, t in zip((ours, torchs), times, strict=True)]
    return times[0] / times[1]


def least_tiles(inputs: int, outputs: int, layout: torch.memory_format, training: bool, sides: tuple[int, ...]) -> int:
    """The fewest tiles from which on ours is always faster; 0: never."""
    least = 0
    for side in reversed([side for side in sides if side * side * inputs * outputs <= MOST_WORK]):
        # asked again, as a neighbour may have had the processor's cache
        if min(ratio(inputs, outputs, side, layout, training) for _ in range(2)) >= 1:
            break
        least = side * side
    return least


def measured(options: Options) -> dict[str, list[list[int]]]:
    """For this process's instruction set: a row for each class of inputs, a column for each of outputs."""
    ins, outs, sides = ((1, 16), (16,), (1, 2)) if options.tiny else (INPUTS, OUTPUTS, SIDES)
    found = {}
    for name, layout in (("channels-last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        for kind, training in (("forward", False), ("training", True)):
            found[f"{kind}, {name}"] = [[least_tiles(c, k, layout, training, sides) for k in outs] for c in ins]
    return found


def main(options: Options, names: list[str] | None = None) -> None:
    """Measure some instruction sets, all by default, and write them beside those that the file has."""
    if options.device != "cpu":
        return
    own = [name for name, held in LEVELS.items() if held and all(os.environ.get(k) == v for k, v in held.items())]
    for name in names or LEVELS:
        if LEVELS[name] and not own:
            command = [sys.executable, "-m", "benchmarks.bench_conv3x3_choice", name] + ["--tiny"] * options.tiny
            subprocess.run(command, env=os.environ | LEVELS[name], check=True)
            continue
        path = RESULTS / machine_name("cpu") / f"{NAME}.json"
        levels = json.loads(path.read_text())["levels"] if path.exists() else {}
        with one_thread():
            found = measured(options)
            for kind, rows in found.items():
                print(name, kind, *rows, sep="\n")
            if options.tiny:
                continue
            levels[_convolution.level()] = {"conditions": conditions("cpu"), "least tiles": found}
        lines = [f'"inputs": {list(INPUTS)}', f'"outputs": {list(OUTPUTS)}', '"rows": []']
        lines += [f'"levels": {{\n  {", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in levels.items())}\n }}']
        path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    chosen, given = parse()
    main(given, chosen)
