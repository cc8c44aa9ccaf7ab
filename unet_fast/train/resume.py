"""What may change when a run is resumed: everything but its network, its optimizer and its data."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from unet_fast import data
from unet_fast.errors import InputError
from unet_fast.train.config import TrainConfig
from unet_fast.train.losses import UNWEIGHTED, Loss

_FIXED = {
    "optimizer": "its state belongs to one kind",
    "seed": "the random numbers continue where they stopped",
    "encoder_weights": "the weights continue where they stopped",
}
_NETWORK = ("model", "base_channels", "depth", "padding", "norm", "dropout")
_FLAGS = {"learning_rate": "--lr", "encoder_weights": "--weights"}


def fingerprint(pair: data.Pair) -> dict[str, Any]:
    """What tells data from other data: number and size of the images, and a CRC-32 of images, labels and ignored pixels."""
    checksum = 0
    for array in (pair.images, pair.labels, pair.ignored):
        for image in () if array is None else array:
            checksum = zlib.crc32(np.ascontiguousarray(image).view(np.uint8).reshape(-1).data, checksum)
    return {"images": len(pair), "size": list(pair.images.shape[1:]), "crc32": f"{checksum:08x}"}


def check_same_data(config: TrainConfig, pair: data.Pair, out: object) -> None:
    """Raise ``InputError`` unless ``pair`` is what the run was started with; a run of a version that did not say is believed."""
    before, now = config.data.get("fingerprint"), fingerprint(pair)
    if not isinstance(before, dict) or before == now:
        return
    differs = [f"{key} {before.get(key)} then, {now[key]} now" for key in now if before.get(key) != now[key]]
    raise InputError(
        f"the run in {out} was trained on other data ({'; '.join(differs)}), which cannot be changed when it is resumed; give the "
        "same images and labels, or choose another --out"
    )


def changed(
    config: TrainConfig, given: dict[str, Any], out: object, announce: Callable[[str], None] = print
) -> TrainConfig:
    """The configuration of a run that is resumed with other settings.

    Args:
        config: of the run so far.
        given: settings that were asked for: flat names of :class:`TrainConfig` and options of the network, None for those that
            were not.
        out: the run folder, to be named in errors.
        announce: told of every setting that changes.

    Raises:
        InputError: a setting that cannot change: of the network, the optimizer, or one that acts at the start only.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    for name in _NETWORK:
        before = config.model.get("name" if name == "model" else name)
        if name in asked and asked[name] != before:
            raise _refused(name, asked[name], before, "the weights belong to one network", out)
    so_far = config.flat()
    for name, why in _FIXED.items():
        if name in asked and asked[name] != so_far[name]:
            raise _refused(name, asked[name], so_far[name], why, out)
    if asked.get("loss", config.loss.name) not in (config.loss.name, Loss().name):
        asked = {**UNWEIGHTED, **asked}
    new = {name: value for name, value in asked.items() if name not in (*_NETWORK, *_FIXED) and so_far[name] != value}
    for name, value in new.items():
        announce(f"changed from here on: {name} is {value}, was {so_far[name]}")
    return config.changed(**new)


def share_batch(config: TrainConfig, processes: int, out: object) -> int:
    """Tiles a step of each of ``processes``, so that all of them together train on as many as those before did."""
    total = config.batch_size * config.processes
    if total % processes:
        raise InputError(
            f"the run in {out} takes {total} tiles a step, which {processes} processes cannot share evenly; give --batch-size, "
            "the tiles of each"
        )
    return total // processes


def _refused(name: str, value: object, before: object, why: str, out: object) -> InputError:
    flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
    return InputError(
        f"{flag} is {value}, but the run in {out} has {before}, which cannot be changed when it is resumed: {why}; leave it "
        "out, or choose another --out"
    )
