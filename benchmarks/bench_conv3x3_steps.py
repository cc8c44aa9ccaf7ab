"""Training steps of whole networks on a CPU against torch, eager and compiled, in float32 and under bfloat16 autocast; and memory.

One thread. torch.compile's code comes from its cache where it has been compiled before.

python -m benchmarks.bench_conv3x3_steps
"""

from __future__ import annotations

import sys

import torch

import unet_fast as uf
from benchmarks import resident
from benchmarks.common import Options, Suite, one_thread, run
from benchmarks.record import Row

STEPS = [(32, 192, "same"), (32, 380, "valid")]
LAST = torch.channels_last


def steps(options: Options) -> None:
    """The first result file."""
    suite = Suite("conv3x3_steps", options, picture=True)
    for base, side, padding in [(16, 64, "same")] if options.tiny else STEPS:
        x = torch.rand(1, 1, side, side).contiguous(memory_format=LAST)

        def net(fused: bool, base: int = base, padding: str = padding) -> uf.UNet:
            made = uf.UNet(base_channels=base, padding=padding, fused="auto" if fused else False)
            return made.to(memory_format=LAST)

        calls = suite.options.ours("conv3x3", resident.training_step(net(True), x, fused_loss=True), "training step")
        for name, amp in (("float32", False), ("bfloat16 autocast", True)):
            calls[f"torch, {name}"] = resident.training_step(net(False), x, fused_loss=False, amp=amp)
            compiled = net(False)
            compiled.compile(**({"backend": "eager"} if options.tiny else {}))
            calls[f"torch.compile, {name}"] = resident.training_step(compiled, x, fused_loss=False, amp=amp)
        suite.measure(f"U-Net, base {base}, {side}x{side}, {padding}, training step", calls, rounds=5, images=1)
    suite.finish()


def memory(options: Options) -> None:
    """The second: no times, megabytes of a process and of torch's record."""
    suite = Suite("conv3x3_memory", options)
    cases = [("forward", 380, "valid"), ("step", 380, "valid"), ("step", 192, "same")]
    for call, side, padding in [("step", 64, "same")] if options.tiny else cases:
        base = 16 if options.tiny else 32
        found = {name: resident.measure(name, call, base, side, padding) for name in ("ours", "torch")}
        for kind, words in (("resident", "resident memory"), ("record", "torch's record")):
            for name, values in found.items():
                ratio = values[kind] / found["ours"][kind]
                case = f"U-Net, base {base}, {side}x{side}, {padding}, {call}, {words}"
                role, op = ("ours", "conv3x3") if name == "ours" else ("peer", None)
                suite.add(Row(case, name, role, 0, 0, 0, ratio, op, "memory", peak_megabytes=values[kind]))
    suite.finish()


def main(options: Options) -> None:
    """Two result files."""
    if options.device != "cpu":
        return
    with one_thread():  # so do the processes whose memory is measured
        steps(options)
        if sys.platform == "linux":
            memory(options)


if __name__ == "__main__":
    run(main)
