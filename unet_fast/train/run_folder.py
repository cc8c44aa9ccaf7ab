"""The files of a run: what they are called, what is in them, and how a trained network is read back.

config.json              the TrainConfig
metrics.csv              a row per log interval: step, seconds, loss, lr, validation scores where one was made, and the
                         loss of each head of a network with several, before weighting: loss_head_1 is the main one
model.safetensors        the best weights so far (by validation score), for prediction
checkpoint.safetensors   everything that --resume needs
loss.png preview.png overlay.png
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unet_fast import models
from unet_fast.errors import InputError, first_line
from unet_fast.files import atomic_path, remove_leftovers
from unet_fast.train.checkpoint import check_finite, load_tensors, save_tensors
from unet_fast.train.config import TrainConfig

CONFIG, METRICS, WEIGHTS, CHECKPOINT = "config.json", "metrics.csv", "model.safetensors", "checkpoint.safetensors"
PREVIEW, LOSS_CURVE, OVERLAY = "preview.png", "loss.png", "overlay.png"
WRITTEN = (CONFIG, METRICS, WEIGHTS, CHECKPOINT, PREVIEW, LOSS_CURVE, OVERLAY)
COLUMNS = (
    "step", "seconds", "loss", "lr", "val_loss", "val_pixel_error", "val_rand_error", "val_dice", "val_average_precision",
)  # fmt: skip
HEAD = "loss_head_"  # and a number from 1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and clear away what killed ones left there.

    The lock is one on the folder itself and ends with the process, however that ends; it leaves no file behind.

    Raises:
        InputError: another process trains into the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training into {folder}; wait until it has ended, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        remove_leftovers(folder)
        yield
    finally:
        os.close(handle)


def read_config(folder: str | Path) -> TrainConfig:
    """The configuration of a run folder. Raises ``InputError`` when the folder is none."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is not a run folder: there is no such folder; train writes one with --out")
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} is not a run folder: it holds no {CONFIG}; train writes one with --out")
    return TrainConfig.load(path / CONFIG)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> tuple[torch.nn.Module, TrainConfig]:
    """The trained network of a run folder, in eval mode on ``device``, and the run's configuration.

    A ``threshold`` that the run was to find out is in the configuration, 0.5 where it had no images to find it on.
    """
    config = read_config(folder)
    path = Path(folder) / WEIGHTS
    if not path.exists():
        raise InputError(
            f"{folder} holds no {WEIGHTS} yet: the run has not been validated yet; continue it with train --resume"
        )
    tensors, state = load_tensors(path)
    check_finite(path, tensors)
    if config.threshold is None:
        config = replace(config, threshold=float(state.get("threshold", 0.5)))
    try:
        with torch.device("meta"):  # nothing is allocated for a network that the weights do not fit
            expected = models.create(**config.model).state_dict()
    except (TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"the network of {Path(folder) / CONFIG} cannot be made ({first_line(error)[:200]})"
        ) from error
    differing = [name for name in expected.keys() | tensors.keys() if not _same(expected.get(name), tensors.get(name))]
    if differing:
        raise InputError(f"{path} does not fit the network of {CONFIG} (first at {min(differing)})")
    model = models.create(**config.model)
    model.load_state_dict(tensors)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return model.to(device).eval(), config


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.dtype == other.dtype


def save_model(folder: Path, model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Write the weights that prediction uses."""
    save_tensors(folder / WEIGHTS, dict(model.state_dict()), state)


class MetricsLog:
    """metrics.csv: rows are kept in memory too, for the loss curve, and the file is replaced in one step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self.rows: list[dict[str, float]] = []

    def keep_until(self, step: int) -> bool:
        """Read the rows of an interrupted run up to ``step``; later ones will be computed again.

        False where the file is damaged, of which only the rows before the damage are kept.
        """
        if not self.path.exists():
            return True
        try:
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file, strict=True):
                    values = {key: float(text) for key, text in row.items() if text}
                    if values["step"] <= step:
                        self.rows.append(values)
        except (ValueError, TypeError, KeyError, csv.Error):
            return False
        return True

    def ends_with(self, step: int) -> bool:
        """Whether the last row is that of ``step``."""
        return bool(self.rows) and self.rows[-1]["step"] == step

    def add(self, **values: float) -> None:
        """Add a row and write the file."""
        self.rows.append(values)
        text = io.StringIO()
        heads = max(sum(name.startswith(HEAD) for name in row) for row in self.rows)
        columns = [*COLUMNS, *(f"{HEAD}{number}" for number in range(1, heads + 1))]
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({key: f"{value:.0f}" if key == "step" else f"{value:.6g}" for key, value in row.items()})
        with atomic_path(self.path) as temporary:
            temporary.write_text(text.getvalue())
