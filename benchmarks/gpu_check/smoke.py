"""Every operator on every backend of the device, each in a process of its own: right, never waiting, fit for a graph.

    python -m benchmarks.gpu_check.smoke [OP ...] [--device cuda]

A sample of each dtype and layout goes forward and backward, is compared with the reference on the CPU, then again while torch
raises at every wait for the device, then inside a CUDA graph that is replayed with other numbers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks import rows
from benchmarks.gpu_check.items import processors
from unet_fast.ops import _backends, use_backend
from unet_fast.ops._record import OPS, Draw, Op, as_list

DTYPES = (torch.float32, torch.bfloat16)
FORMS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SIZE = (2, 40, 37)  # images, rows, columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="OP", help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.names or options.device == "cpu":
        wrong = [line for name in options.names or OPS for line in try_out(OPS[name], options.device)]
    else:  # an access out of bounds ends the process that makes it, and no other
        with ThreadPoolExecutor(processors()) as pool:
            wrong = [line for lines in pool.map(apart, OPS) for line in lines]
    for line in wrong:
        print(line, flush=True)
    if wrong:
        sys.exit(f"smoke: {len(wrong)} of the samples failed")
    print(f"smoke: {len(options.names or OPS)} operators on {options.device}, all right")


def apart(name: str) -> list[str]:
    """What is wrong with an operator, found out by another process."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.smoke", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    return [f"{name}: {line}" for line in (done.stdout + done.stderr).splitlines()[-12:]]


def try_out(op: Op, device: str) -> list[str]:
    """A line for each sample that failed; a row for each backend."""
    wrong = []
    backends = ("cuda", "triton") if device == "cuda" else ("cpp",)
    for backend in (name for name in backends if name in _backends.KERNELS[op.name]):
        reason = _backends.why_not(backend, op.name, device)
        found = [f"{op.name} ({backend}): {reason}"] if reason else []
        for dtype in DTYPES if not reason else ():
            for layout, form in FORMS.items():
                what = f"{op.name} ({backend}), {str(dtype).removeprefix('torch.')}, {layout}"
                try:
                    with use_backend(backend):
                        sample(op, device, dtype, form)
                except Exception as error:
                    text = " ".join(str(error).split())[:600]
                    found.append(f"{what}: {type(error).__name__}: {text}")
        rows.emit({"op": op.name, "backend": backend, "outcome": "; ".join(found) or "right"})
        wrong += found
    return wrong


def sample(op: Op, device: str, dtype: torch.dtype, form: torch.memory_format) -> None:
    """Raise where a sample is wrong, waits for the device, or differs in a graph."""

    def draw(seed: int) -> tuple[Tensor, ...]:
        return op.sample(Draw(torch.Generator().manual_seed(seed), dtype, form, device), *SIZE)

    op.check(draw(0))
    if device == "cuda":
        static, other = op.with_leaves(draw(1)), op.with_leaves(draw(2))
        expected = results(op, other)
        torch.cuda.synchronize()
        with no_waiting():
            results(op, static)
        captured(op, static, other, expected)


def results(op: Op, tensors: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients, with 1 for each gradient that comes in."""
    outputs = as_list(op.call(*tensors))
    heads = [output for output in outputs if output.requires_grad]
    if not heads:
        return outputs
    grads = torch.autograd.grad(heads, [tensors[i] for i in op.leaves], [torch.ones_like(head) for head in heads])
    return [*(output.detach() for output in outputs), *grads]


@contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where it would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(op: Op, static: list[Tensor], other: list[Tensor], expected: list[Tensor]) -> None:
    """Capture a call, replay it with other numbers, compare with the call outside of a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(op, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(op, static)
    with torch.no_grad():
        for tensor, numbers in zip(static, other, strict=True):
            tensor.copy_(numbers)
    graph.replay()
    torch.cuda.synchronize()
    # sums by atomic additions come in another order each time
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


if __name__ == "__main__":
    main()
