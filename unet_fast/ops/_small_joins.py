"""Joins on a CPU that torch's own operations finish sooner: of small maps, whose autograd needs no Python then, and without a crop.

What an operator of ours costs whatever its size (the checks, autograd through Python: some 10 us forward, 70 us with a backward pass) is
more than it saves there. Where a backend is asked for by name, its kernels run for maps of every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from unet_fast.ops import _backends, _library

# Bytes of the joined map from which on our kernels are faster (one thread), forward and backward: a map that is cropped or padded, by
# layout, where they take 1.0 to 1.5 times torch's time at half of it; one that is up-sampled.
_MOVED, _MOVED_LAST, _UP_SAMPLED = 5 << 18, 3 << 18, 3 << 15
# The same of maps that fit each other: bytes from which on the joined map is written past the caches (csrc/cpu/copy_rows.h), which takes
# 0.55 to 0.75 of torch.cat's time, and 0.11 where that gets new pages; below, 1.0 to 1.2 times (one thread).
_PAST_CACHES = 1 << 24

# What comes before torch.cat: an index into the skip, the padding of the other map, or nothing.
Steps = tuple[Any, ...]


def steps_of_torch(skip: object, x: object, factor: int, padding: str | None) -> Steps | None:
    """How torch joins these maps with the result of our kernels in every respect, ``x`` being up-sampled by ``factor``, and sooner.

    Without any other check, which would take as long as the join of small maps: what fits no join is None, like all that our
    kernels should do.
    """
    if not (isinstance(skip, torch.Tensor) and isinstance(x, torch.Tensor) and skip.is_cpu and x.is_cpu):
        return None
    # a library that does not load is told of
    if skip.dtype != x.dtype or _backends.wish() != "auto" or _library.CPU.error is not None:
        return None
    if torch.compiler.is_compiling() or type(skip.numel()) is not int or type(x.numel()) is not int:
        return () if factor == 1 and _fit(skip.shape, x.shape) else None  # no more is known of the sizes of a graph
    last = skip.dim() > 3 and skip.stride(1) == 1
    return _steps(skip.shape, x.shape, x.dtype, factor, padding, last)


def _fit(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether nothing is cropped, padded, or of one channel, in whose layout the result may be another."""
    if len(a) != len(b) or len(a) not in (4, 5) or a[0] != b[0] or a[2] != b[2] or a[3] != b[3] or a[-1] != b[-1]:
        return False
    return bool(a[1] == 1) == bool(b[1] == 1)


@lru_cache(1024)  # sizes may differ from call to call
def _steps(
    a: Sequence[int], b: Sequence[int], dtype: torch.dtype, factor: int, padding: str | None, last: bool
) -> Steps | None:
    if len(a) != len(b) or len(a) not in (4, 5) or (factor > 1 and len(a) == 5) or a[0] != b[0]:
        return None
    up = tuple(factor * part for part in b[2:])
    if any(full < part for full, part in zip(a[2:], up, strict=True)) or (a[1] == 1) != (b[1] == 1):
        return None
    same = a[2:] == up
    # torch pads and interpolates floating numbers only, and where there are some
    if (factor > 1 or (padding and not same)) and (not dtype.is_floating_point or 0 in b):
        return None
    least = _UP_SAMPLED if factor > 1 else _PAST_CACHES if same else _MOVED_LAST if last else _MOVED
    if a[0] * (a[1] + b[1]) * prod(a[2:] if padding else up) * dtype.itemsize >= least:
        return None
    if same:
        return ()
    starts = [(full - part) // 2 for full, part in zip(a[2:], up, strict=True)]
    if padding is None:
        return (..., *(slice(start, start + part) for start, part in zip(starts, up, strict=True)))
    sides = [(start, full - part - start) for start, full, part in zip(starts, a[2:], up, strict=True)]
    return tuple(n for side in reversed(sides) for n in side)


def join_by_torch(
    skip: torch.Tensor,
    x: torch.Tensor,
    steps: Steps,
    order: str,
    padding: str | None,
    mode: str | None = None,
    aligned: bool = False,
) -> torch.Tensor:
    """The result; ``mode``: how ``x`` is up-sampled by 2 before."""
    if (mode or steps) and torch.is_autocast_enabled("cpu"):  # by which torch would interpolate and pad in float32
        with torch.autocast("cpu", enabled=False):
            return join_by_torch(skip, x, steps, order, padding, mode, aligned)
    if mode is not None:
        x = F.interpolate(x, scale_factor=2, mode=mode, align_corners=aligned if mode == "bilinear" else None)
    if steps and padding is None:
        skip = skip[steps]
    elif steps:
        x = F.pad(x, steps, mode="constant" if padding == "zeros" else str(padding))
    return torch.cat([skip, x] if order == "skip_first" else [x, skip], 1)
