"""The kernels that a training step spends its time in, those of the longest time first: where to look next.

python -m benchmarks.gpu_check.profile [--device cuda] [--quick | --tiny]
"""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import rows
from benchmarks.bench_train import SETTINGS, TINY, synthetic, trainer
from benchmarks.common import Options, run

STEPS, SHOWN = 5, 40


def main(options: Options) -> None:
    gpu = options.device == "cuda"
    settings = TINY if options.tiny else SETTINGS[options.device][0]
    training = trainer(settings, options.device, synthetic(settings, 4))
    for _ in range(3):
        training.train_step()
    activities = [ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as record:
        for _ in range(STEPS):
            training.train_step()
        if gpu:
            torch.cuda.synchronize()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    print(f"{total / STEPS / 1e3:.3f} ms a step in all, {settings}")
    for event in events[:SHOWN]:
        milliseconds = getattr(event, key) / STEPS / 1e3
        name, calls = event.key[:110], event.count / STEPS
        rows.emit({"kernel": name, "milliseconds": round(milliseconds, 4), "calls": calls})
        print(f"{milliseconds:9.3f} ms {calls:6.1f} calls  {name}")


if __name__ == "__main__":
    run(main)
