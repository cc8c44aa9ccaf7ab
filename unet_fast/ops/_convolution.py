"""Which algorithm computes a 3x3 convolution on a CPU, and the transformed weights that are kept between calls.

``UNET_FAST_CONVOLUTION=auto|winograd|direct`` (or :func:`use_convolution`) states the wish. ``winograd`` takes Winograd's
F(4x4, 3x3) wherever it can compute what was asked for, ``direct`` leaves everything to torch, and ``auto`` takes the one
that was measured to be the faster for the channels and the size.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.weak import WeakIdKeyDictionary

from unet_fast import __version__
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _library, _protocol
from unet_fast.remembered import machine_name, remember, remembered

NAMES = ("auto", "winograd", "direct")
TILE = 4  # output pixels along a side of a tile

# What "auto" may give to Winograd before sizes are known: at least so many channels on both sides, which fill a vector. Up to
# THIN input channels (kThin of csrc/cpu/winograd.h), as of an image, the same operator has a direct form of its own. Which of
# them it does give is in a table, see least_tiles.
LEAST_CHANNELS = 16
THIN = 4
MOST_KEPT = 3 << 17  # a quarter of kMostWhole in csrc/cpu/winograd.cpp

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


class Described(Protocol):
    """A map, or what is known of one that is not written yet."""

    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def shape(self) -> torch.Size: ...  # noqa: D102
    def stride(self, dim: int, /) -> int: ...  # noqa: D102


def by_winograd(inputs: Sequence[Described], weight: torch.Tensor, padding: int) -> bool:
    """Whether Winograd's algorithm computes this convolution, of one or several maps of equal size.

    Also for inputs of few channels, for which its operator has a direct form.
    """
    first = inputs[0]
    if first.device.type != "cpu" or first.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if weight.shape[2:] != (3, 3) or padding not in (0, 1) or wish() == "direct":
        return False
    if _backends.wish() not in ("auto", "cpp") or _library.CPU.error is not None or _protocol.transformed():
        return False
    if _wish == "winograd":
        return True
    batch, _, height, width = first.shape
    if torch.compiler.is_compiling() or not type(batch) is type(height) is type(width) is int:
        return suit(weight.shape[0], weight.shape[1])  # a graph serves sizes that nobody knows yet
    edge = 2 * padding - 2 + TILE - 1
    tiles = batch * ((height + edge) // TILE) * ((width + edge) // TILE)
    kind = "training" if torch.is_grad_enabled() and weight.requires_grad else "forward"
    # one channel has no layout: then that of the weights
    last = first.stride(1) == 1 or (first.shape[1] == 1 and weight.stride(1) == 1)
    least = least_tiles(level(), kind, "channels-last" if last else "contiguous", weight.shape[0], weight.shape[1])
    return 0 < least <= tiles


def suit(out_channels: int, in_channels: int) -> bool:
    """Whether "auto" may have a form for a convolution of these channels: Winograd's, or the direct one of a first layer."""
    return out_channels >= LEAST_CHANNELS and (in_channels >= LEAST_CHANNELS or in_channels <= THIN)


@functools.cache
def least_tiles(level: str, kind: str, layout: str, out_channels: int, in_channels: int) -> int:
    """From how many tiles on the operator was measured to be faster than torch's convolution; 0: never.

    ``kind``: "forward" or "training"; ``layout``: "channels-last" or "contiguous". The table, in measured.json, holds the
    channels at which a vector is full or hardly begun; others go with the next smaller ones
    (benchmarks/bench_conv3x3_choice.py).
    """
    table = _backends.CONVOLUTION
    row, column = (
        bisect.bisect_right(table[name], channels) - 1
        for name, channels in (("inputs", in_channels), ("outputs", out_channels))
    )
    return int(table["levels"][level][f"{kind}, {layout}"][row][column]) if min(row, column) >= 0 else 0


# parameter -> (its versions and the channels of the inputs, transformed weights, their header), as long as the parameter lives
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
STALE = 1  # the word of the header in csrc/bindings/torch_cpu/conv3x3.cpp


def versions_of(tensors: Sequence[torch.Tensor]) -> tuple[object, ...] | None:
    """What changes when a counted operation writes to these tensors, or None where none counts."""
    if torch.compiler.is_compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return None  # nothing is kept of tensors without numbers, which real weights become inside of FakeTensorMode
    versions: list[object] = []
    for tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_inference():
            return None
        versions += (tensor._version, tensor.data_ptr())
    return tuple(versions)


def state_of(tensors: Sequence[torch.Tensor]) -> tuple[object, ...] | None:
    """What changes when the numbers of these tensors do, or None where that cannot be told.

    In-place operations count a tensor's version. Writing through ``.data`` counts nothing, so some numbers, up to 64 of
    each tensor, are looked at as well.
    """
    versions = versions_of(tensors)
    return None if versions is None else (*versions, torch.ops.unet_fast.fingerprint(tensors).item())


def transformed(weight: torch.Tensor, channels: Sequence[int]) -> torch.Tensor | None:
    """The weights as Winograd's algorithm needs them, for inputs of these channels, if they may be kept.

    None while gradients are recorded, as the weights then change with every step, inside of a compiled or exported
    graph, and where there is nothing to transform, for inputs of few channels. They take four times the memory of the
    weights; so those of the widest layers (``MOST_KEPT``) are not kept either: the operator makes them piece by piece
    in the cache, which takes little longer than to read them. Kept ones go when the parameter goes or is written to. What no version counts, such as writing through ``.data``,
    the operator finds by the numbers themselves (up to 64 of them): it goes without what is kept, and says so in its
    header, so that the next call gets new ones.
    """
    if sum(channels) <= THIN or weight.numel() > MOST_KEPT or (torch.is_grad_enabled() and weight.requires_grad):
        return None
    versions = versions_of((weight,))
    if versions is None:
        return None
    state = (*versions, *channels)
    found = _kept.get(weight)
    if found is not None and found[0] == state and not found[2][STALE]:
        made: torch.Tensor = found[1]
        return made
    with torch.inference_mode(False), torch.no_grad():
        made = torch.ops.unet_fast.conv3x3_weights(weight, channels)
        _kept[weight] = (state, made, made[: STALE + 1].view(torch.int32).numpy())
    return made


def kept() -> list[tuple[torch.Tensor, Any]]:
    """All transformed weights that are kept, and their headers, in which a call that finds them out of date says so."""
    return [(made, header) for _, made, header in _kept.values()]


def rule() -> str:
    """Which convolutions Winograd's form computes, and why, for a person."""
    if wish() == "direct":
        return "all by torch, as asked for"
    if wish() == "winograd":
        return f"{level()}, all of float32, as asked for"
    least = {
        layout: ", ".join(
            f"{least_tiles(level(), 'forward', layout, channels, channels) or 'never'} with {channels} channels"
            for channels in (16, 32, 64)
        )
        for layout in ("channels-last", "contiguous")
    }
    return (
        f"{level()}, float32, from the number of tiles of {TILE} x {TILE} pixels on at which it was measured to be faster than torch, "
        "which computes smaller layers: " + "; ".join(f"{layout} {words}" for layout, words in least.items())
    )


LEVELS = ("plain C++", "AVX2", "AVX-512")  # of csrc/cpu/winograd.h
_levels: dict[str | None, str] = {}  # by that limit


def level() -> str:
    """The instruction set of Winograd's form on this processor; UNET_FAST_CPU_LEVEL=plain|avx2|avx512 limits it."""
    limit = os.environ.get("UNET_FAST_CPU_LEVEL")
    if limit not in _levels:
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.ops.unet_fast.conv3x3_weights(torch.zeros(1, 1, 3, 3), [1])
        _levels[limit] = LEVELS[int(weights.view(torch.int32)[0])]
    return _levels[limit]


@functools.cache
def step_times() -> dict[torch.dtype, float]:
    """Seconds of processor time of one 3x3 layer, forward and backward, in float32 and in bfloat16.

    Which is faster depends on the processor: with units for bfloat16 matrices (AMX) torch's direct form in bfloat16,
    without them Winograd's form in float32. Measured once, in some tens of milliseconds, and remembered from then on in
    the user's cache folder (``unet_fast/convolution.json``) for this processor, number of threads, algorithm and version,
    so that a run that is started again computes in the same precision.
    """
    key = ", ".join(
        (machine_name("cpu"), f"{torch.get_num_threads()} threads", wish(), level(), torch.__version__, __version__)
    )
    known = remembered("convolution").get(key)
    if isinstance(known, dict) and all(isinstance(known.get(name), float) for name in _PRECISIONS):
        return {dtype: known[name] for name, dtype in _PRECISIONS.items()}
    times = _measured_step_times()
    remember("convolution", key, {name: times[dtype] for name, dtype in _PRECISIONS.items()})
    return times


_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _measured_step_times() -> dict[torch.dtype, float]:
    """The best of five each, in processor time, which other work on the machine lengthens least."""
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
                began = time.process_time()
                out = conv3x3(x, weight, padding=1, activation="relu")
                torch.autograd.grad(out, (x, weight), out.detach())
                times[dtype] = min(time.process_time() - began, times.get(dtype, math.inf))
    return times
