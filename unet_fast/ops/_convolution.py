"""Which algorithm computes a 3x3 convolution on a CPU, and the transformed weights that are kept between calls.

``UNET_FAST_CONVOLUTION=auto|winograd|direct`` (or :func:`use_convolution`) states the wish. ``winograd`` takes Winograd's
F(4x4, 3x3) wherever it can compute what was asked for, ``direct`` leaves everything to torch, and ``auto`` takes the one
that was measured to be the faster for the channels and the size.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.weak import WeakIdKeyDictionary

from unet_fast.errors import InputError
from unet_fast.ops import _backends, _library

NAMES = ("auto", "winograd", "direct")
TILE = 4  # output pixels along a side of a tile

# What "auto" gives to Winograd: at least so many channels on both sides, which fill a vector, and as many tiles as make up
# for reading weights that are four times as large.
LEAST_CHANNELS = 16
LEAST_TILES = 4

_wish = os.environ.get("UNET_FAST_CONVOLUTION", "auto")


def wish() -> str:
    """The algorithm asked for, ``auto`` by default."""
    if _wish not in NAMES:
        raise InputError(f"UNET_FAST_CONVOLUTION is {_wish!r}, expected one of {', '.join(NAMES)}")
    return _wish


@contextmanager
def use_convolution(name: str) -> Iterator[None]:
    """Compute the 3x3 convolutions on a CPU inside the ``with`` block by "winograd" or "direct", or choose ("auto").

    Raises:
        InputError: another name.
    """
    global _wish
    if name not in NAMES:
        raise InputError(f"convolution is {name!r}, expected one of {', '.join(NAMES)}")
    before, _wish = _wish, name
    try:
        yield
    finally:
        _wish = before


def by_winograd(inputs: Sequence[torch.Tensor], weight: torch.Tensor, padding: int) -> bool:
    """Whether Winograd's algorithm computes this convolution, of one or several maps of equal size."""
    first = inputs[0]
    if first.device.type != "cpu" or first.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if weight.shape[2:] != (3, 3) or padding not in (0, 1) or wish() == "direct":
        return False
    if _backends.wish() not in ("auto", "cpp") or _library.CPU.error is not None:
        return False
    if _wish == "winograd":
        return True
    if min(weight.shape[:2]) < LEAST_CHANNELS:
        return False
    if torch.compiler.is_compiling() or any(isinstance(size, torch.SymInt) for size in first.shape):
        return True  # a graph serves sizes that nobody knows yet
    rows, columns = (math.ceil((size + 2 * padding - 2) / TILE) for size in first.shape[2:])
    return first.shape[0] * rows * columns >= LEAST_TILES


# parameter -> (its state and the channels of the inputs, transformed weights), as long as the parameter lives
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def state_of(tensors: Sequence[torch.Tensor]) -> tuple[object, ...] | None:
    """What changes when the numbers of these tensors do, or None where that cannot be told.

    In-place operations count a tensor's version. Writing through ``.data`` counts nothing, so some numbers, up to 512 of
    each tensor, are looked at as well.
    """
    if torch.compiler.is_compiling() or any(
        type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_inference() for tensor in tensors
    ):
        return None
    versions = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
    return (*versions, torch.ops.unet_fast.fingerprint(tensors).item())


def transformed(weight: torch.Tensor, channels: Sequence[int]) -> torch.Tensor | None:
    """The weights as Winograd's algorithm needs them, for inputs of these channels, if they may be kept.

    None while gradients are recorded, as the weights then change with every step, and inside of a compiled or exported
    graph. They take four times the memory of the weights, and go when the parameter goes or its :func:`state_of` changes.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        return None
    state = state_of([weight])
    if state is None:
        return None
    state = (*state, *channels)
    found = _kept.get(weight)
    if found is not None and found[0] == state:
        made: torch.Tensor = found[1]
        return made
    with torch.inference_mode(False), torch.no_grad():
        made = torch.ops.unet_fast.conv3x3_weights(weight, channels)
    _kept[weight] = (state, made)
    return made


LEVELS = ("plain C++", "AVX2", "AVX-512")  # of csrc/cpu/winograd.h


def level() -> str:
    """The instruction set of Winograd's form on this processor; UNET_FAST_CPU_LEVEL=plain|avx2|avx512 limits it."""
    return LEVELS[int(torch.ops.unet_fast.conv3x3_weights(torch.zeros(1, 1, 3, 3), [1])[0])]


@functools.cache
def step_times() -> dict[torch.dtype, float]:
    """Seconds of one 3x3 layer, forward and backward, in float32 and in bfloat16, the best of five each.

    Which is faster depends on the processor: with units for bfloat16 matrices (AMX) torch's direct form in bfloat16,
    without them Winograd's form in float32. Measured once a process, in some tens of milliseconds.
    """
    from unet_fast.ops.conv3x3 import conv3x3

    times: dict[torch.dtype, float] = {}
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        operands = {
            dtype: (
                torch.ones(1, 64, 48, 48, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_(),
                torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_(),
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        for _ in range(6):  # the first of which allocates
            for dtype, (x, weight) in operands.items():
                began = time.perf_counter()
                out = conv3x3(x, weight, padding=1, activation="relu")
                torch.autograd.grad(out, (x, weight), out.detach())
                times[dtype] = min(time.perf_counter() - began, times.get(dtype, math.inf))
    return times
