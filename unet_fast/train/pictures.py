"""The pictures of a run: what the network sees, how its loss went, what it makes of the validation images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unet_fast import data, plots
from unet_fast.labels import IGNORED
from unet_fast.train import run_folder
from unet_fast.train.config import TrainConfig
from unet_fast.train.trainer import Trainer
from unet_fast.train.validation import all_classes, predict_pair
from unet_fast.train.windows import on_device

PREVIEW_TILES = 6


def write_preview(config: TrainConfig, training: data.Pair | data.Dataset, path: str | Path) -> None:
    """A picture of augmented tiles, labels and weight maps, as training with ``config`` on ``training`` would see them."""
    device_data = on_device(config, training)
    try:
        preview(Trainer(config, device_data))(Path(path))
    finally:
        device_data.close()


def preview(trainer: Trainer) -> Callable[[Path], Path]:
    """Draw tiles as the next step would, and leave the random numbers as they were; what is returned writes the picture."""
    state = trainer.generator.get_state()
    size = trainer.data.images.shape[2:]
    grid = torch.from_numpy(plots.grid_image((size[0], size[1]))).to(trainer.device)
    images, (*maps, grids) = trainer.tiles(PREVIEW_TILES, (grid,))
    classes, weights = trainer.weigh(maps)
    classes, weights = classes.clamp(min=0), weights.masked_fill(classes == IGNORED, 0)
    trainer.generator.set_state(state)
    shown = [np.asarray(each.cpu()) for each in (images, classes, weights, grids)]
    return lambda path: plots.preview(shown[0], shown[1], shown[2], path, grids=shown[3])


def results(folder: Path, rows: list[dict[str, float]], validation: data.Pair | None, device: torch.device) -> None:
    """loss.png, and overlay.png of the best network."""
    if any("loss" in row or "val_loss" in row for row in rows):
        plots.loss_curve(rows, folder / run_folder.LOSS_CURVE)
    if validation is None or not (folder / run_folder.WEIGHTS).exists():
        return
    model, config = run_folder.load_model(folder, device)
    shown = validation.select(list(range(min(4, len(validation)))))
    probabilities = all_classes(predict_pair(model, config, shown))
    truth = data.to_classes(shown.labels, shown.kind) > 0
    plots.overlay(
        shown.images,
        truth,
        1 - probabilities[:, 0],
        folder / run_folder.OVERLAY,
        names=shown.names,
        ignored=shown.ignored,
    )
