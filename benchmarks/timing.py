"""How long a call takes: torch's Timer on the CPU; on a GPU the replay of a CUDA graph, or events where none can be captured.

A graph replay shows what the kernels take, without the Python and launch overhead that a captured training step does not pay
either; the overhead is measured apart (``benchmarks/bench_dispatch.py``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

Call = Callable[[], Any]
Clock = Callable[[int], float]  # number of calls -> milliseconds a call


def host_clock(call: Call) -> Clock:
    """Wall clock of work on the CPU."""
    timer = Timer("f()", globals={"f": call}, num_threads=torch.get_num_threads())
    return lambda repeats: timer.timeit(repeats).median * 1e3


def gpu_clock(call: Call, capture: bool = True) -> tuple[Clock, str]:
    """Time between two CUDA events around replays of ``call`` captured as a graph, or around calls; and which it is."""
    captured = _capture(call) if capture else None
    run, method = (captured.replay, "graph") if captured is not None else (call, "events")

    def clock(repeats: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    return clock, method


def _capture(call: Call) -> torch.cuda.CUDAGraph | None:
    # a stream has its own blocks of memory, and those of the streams before would stay theirs
    gc.collect()
    torch.cuda.empty_cache()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # lazy initialisation, compilation and choice of algorithms happen here
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:  # it waits for the device, or asks the host: some peers do
        torch.cuda.synchronize()
        return None
    graph.replay()
    torch.cuda.synchronize()
    return graph


def copy_bandwidth(device: str, *, tiny: bool = False) -> float:
    """Bytes read and written in a second by the copy of a large tensor: the limit of what only moves memory.

    ``tiny``: of a small one, to see that all runs.
    """
    source = torch.rand(1 << (16 if tiny else 28 if device == "cuda" else 25), device=device)  # 1 GB, or 128 MB
    target = torch.rand_like(source)
    clock = gpu_clock(lambda: target.copy_(source))[0] if device == "cuda" else host_clock(lambda: target.copy_(source))
    clock(2)
    best = min(clock(3) for _ in range(5))
    return 2 * source.numel() * source.element_size() / (best * 1e-3)


def peak_memory(call: Call) -> int | None:
    """Bytes allocated on the GPU at the same time during ``call`` beyond what was there before; None on the CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
