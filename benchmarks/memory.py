"""The most memory that a call holds at once, on a GPU by torch's allocator, on the CPU by the profiler's record of it."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Call, peak_memory


def peak_megabytes(call: Call, device: str) -> float:
    """10^6 bytes of tensors beyond what was there before ``call``; its first run, not counted, warms up."""
    call()
    if device == "cuda":
        return (peak_memory(call) or 0) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def reset_peak(device: str) -> None:
    """Begin to watch the most memory that torch's allocator holds on a GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def since_reset(device: str) -> float | None:
    """10^6 bytes that were held at once since :func:`reset_peak`; None on the CPU, whose allocator does not count."""
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
