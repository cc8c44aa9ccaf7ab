"""What may change when a run is resumed: everything but its network, its optimizer and its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unet_fast.errors import InputError
from unet_fast.train.config import TrainConfig
from unet_fast.train.defaults import NETWORK_OPTIONS
from unet_fast.train.losses import UNWEIGHTED, Loss

_FIXED = {
    "optimizer": "its state belongs to one kind",
    "separate": "the weights belong to one kind of classes",
    "seed": "the random numbers continue where they stopped",
    "encoder_weights": "the weights continue where they stopped",
}
_NETWORK = ("model", *NETWORK_OPTIONS)
_FLAGS = {"learning_rate": "--lr", "encoder_weights": "--weights"}


def check_same_data(config: TrainConfig, now: dict[str, Any], out: object) -> None:
    """Raise ``InputError`` unless the run was started with the data of which :meth:`unet_fast.data.Dataset.fingerprint` is
    ``now``; what the run did not say is not compared."""
    before = config.data.get("fingerprint")
    if not isinstance(before, dict):
        return
    differs = [f"{key} {before[key]} then, {now[key]} now" for key in now if before.get(key, now[key]) != now[key]]
    if not differs:
        return
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
        if name in asked and asked[name] != (before if before is not None else "none"):
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
