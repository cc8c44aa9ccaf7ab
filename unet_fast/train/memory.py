"""Out of memory: which settings would have fitted."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from unet_fast.errors import InputError
from unet_fast.models import create
from unet_fast.train.config import TrainConfig


def total(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the host: the least of what it has and what its container may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return min(limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the host, was refused."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    # the last is an operator of ours, which hears of the allocator of a CPU only that it failed
    failed = "aten::empty" in text and "API call failed" in text
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text or failed
    )


def explain_out_of_memory(config: TrainConfig, attempt: Callable[[TrainConfig], None]) -> InputError:
    """The error that names, on a GPU, the largest batch at this tile, and the largest tile at this batch, that fit.

    With several processes, and on a CPU, nothing is tried: a system that promises more memory than it has ends the process that uses it.

    Args:
        config: what did not fit.
        attempt: does one step of a configuration; raises out of memory where it does not fit.
    """
    what = f"out of memory on {config.device}: {config.batch_size} tiles of {config.tile} px a step do not fit"
    if not config.device.startswith("cuda") or config.processes > 1:
        return InputError(f"{what}; use a smaller --tile or --batch-size")

    def fits(changed: TrainConfig) -> bool:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            attempt(changed)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return False
            raise
        return True

    with torch.device("meta"):
        geometry = create(**config.model).geometry
    tiles = sorted({geometry.covering_output(side) for side in range(1, config.tile)} - {config.tile})
    batch = _largest(list(range(1, config.batch_size)), lambda size: fits(replace(config, batch_size=size)))
    tile = _largest(tiles, lambda side: fits(replace(config, tile=side)))
    if batch is None and tile is None:
        # neither alone is enough: the smallest batch with the largest tile for it
        tile = _largest(tiles, lambda side: fits(replace(config, batch_size=1, tile=side)))
        advice = None if tile is None else f"--batch-size 1 --tile {tile} fits"
    else:
        options = [] if batch is None else [f"--batch-size {batch}"]
        options += [] if tile is None else [f"--tile {tile}"]
        advice = f"{' or '.join(options)} fits"
    return InputError(
        f"{what}; " + (advice or "nor does one of the smallest tiles: use a smaller network (--base-channels)")
    )


def _largest(candidates: list[int], fits: Callable[[int], bool]) -> int | None:
    """The last of ascending candidates that fits, by bisection; None if none does."""
    low, high = 0, len(candidates)  # all below low fit, none from high on
    while low < high:
        middle = (low + high) // 2
        if fits(candidates[middle]):
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None
