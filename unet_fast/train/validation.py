"""The scores of a network on the validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unet_fast import data, metrics
from unet_fast.data.cores import classes_of
from unet_fast.data.touching import separate_touching
from unet_fast.labels import IGNORED
from unet_fast.predict.cores import core_instances, levels_of
from unet_fast.predict.instances import MIN_SIZE, foreground_instances
from unet_fast.train.config import TrainConfig
from unet_fast.train.losses import logits_of
from unet_fast.train.prediction import SMALLEST_TILE, predictor_of

TILE = 256  # at least: the output tile of a validation, where tiles do not differ from the whole image


@dataclass(frozen=True)
class Validation:
    """Scores of one validation; foreground is all but class 0. ``rand_error`` is None for several classes."""

    loss: float
    pixel_error: float
    rand_error: float | None
    dice: float
    average_precision: float | None = None  # of objects, at an IoU of 0.5; of labels that number them
    mean_average_precision: float | None = None  # over 0.5, 0.6, ... 0.9
    by_cores: bool = False
    threshold: float = 0.5  # of the best Dice coefficient of the foreground

    @property
    def criterion(self) -> float:
        """Less is better: 1 - mean average precision where objects grow out of cores, 1 - Dice with several classes, pixel error for
        masks, and the mean of pixel and Rand error for numbered objects that a ridge separates.

        Not for masks: one gap in one line moves their Rand error more than the rest of a training moves both.
        """
        if self.by_cores and self.mean_average_precision is not None:
            return 1 - self.mean_average_precision
        if self.rand_error is None:
            return 1 - self.dice
        numbered = self.average_precision is not None
        return (self.pixel_error + self.rand_error) / 2 if numbered else self.pixel_error


NOTHING_COUNTS = "no pixel of the validation images counts"


def cannot_judge(pair: data.Pair, best_by: str) -> str | None:
    """Why scores of these images say nothing about which network is better, as a clause; None where they do."""
    counted = pair.labels if pair.ignored is None else pair.labels[~pair.ignored]
    if counted.size == 0:
        return NOTHING_COUNTS
    if best_by == "loss":
        return None
    foreground = int(np.count_nonzero(counted))
    if foreground == 0:
        return "the validation images show background only"
    return "the validation images show foreground only" if foreground == counted.size else None


def predict_pair(model: torch.nn.Module, config: TrainConfig, pair: data.Pair) -> np.ndarray:
    """(N, K, H, W) float32 probabilities of all outputs of a network, without averaging over versions.

    A network that normalises by what it sees gets the tiles of a prediction, so that what is validated is what is applied.
    """
    smallest = TILE if getattr(model, "tile_dependence", None) is None else SMALLEST_TILE
    as_they_are: dict[str, Any] = {"preprocess": _as_they_are} if pair.normalized else {}
    return predictor_of(model, config, tta=1, tile=max(config.tile, smallest), separate="ridge", **as_they_are)(
        pair.images
    )


def _as_they_are(images: np.ndarray) -> np.ndarray:
    return images


def validate(
    probabilities: np.ndarray,
    pair: data.Pair,
    loss: torch.nn.Module,
    *,
    separate: str = "ridge",
    min_size: int = MIN_SIZE,
    threshold: float = 0.5,
) -> Validation:
    """Scores of (N, K, H, W) probabilities against the labels of ``pair``; ignored pixels count nowhere.

    The loss is ``loss`` without weights per pixel; K = 1 is the foreground of two classes. Rims and cores are scored by the objects
    that grow out of them, in the foreground that exceeds ``threshold``, and else as foreground.
    """
    by_cores = separate == "cores"
    classes = data.to_classes(pair.labels, pair.kind)
    instances = data.to_instances(pair.labels, pair.kind)
    target = classes
    if by_cores:
        target = classes_of(separate_touching(instances), instances)[0].astype(np.int64)
    if pair.ignored is not None:
        target = np.where(pair.ignored, IGNORED, target)
        # background in both: neither a hit nor a miss to the scores, all of which are about the foreground
        classes, instances = (np.where(pair.ignored, 0, labels) for labels in (classes, instances))
        probabilities = np.where(pair.ignored[:, None], 0, probabilities)
        if probabilities.shape[1] > 1:
            probabilities[:, 0] += pair.ignored
    value = float(loss(logits_of(torch.from_numpy(probabilities)), torch.from_numpy(target)))
    found = _objects(probabilities, by_cores, min_size, threshold) if by_cores or pair.kind == "instances" else None
    precision = None if found is None else metrics.detections(found, instances).average_precision
    probabilities = foreground_only(probabilities) if by_cores else all_classes(probabilities)
    dice = metrics.dice(probabilities.argmax(1), classes, num_classes=probabilities.shape[1])
    foreground = 1 - probabilities[:, 0]
    pixel = metrics.pixel_error(foreground, classes > 0)
    cells = found if by_cores and found is not None else foreground
    rand = metrics.rand_error(cells, instances) if probabilities.shape[1] == 2 and instances.any() else None
    threshold = metrics.best_threshold(foreground, classes > 0, metric="dice").threshold if classes.any() else 0.5
    return Validation(
        value,
        pixel,
        rand,
        dice,
        average_precision=None if precision is None else float(precision[0]),
        mean_average_precision=None if precision is None else float(precision.mean()),
        by_cores=by_cores,
        threshold=float(threshold),
    )


def _objects(probabilities: np.ndarray, by_cores: bool, min_size: int, threshold: float) -> np.ndarray:
    """(N, H, W) instances out of (N, K, H, W) probabilities, as prediction makes them."""
    if by_cores:
        return np.stack([core_instances(levels, min_size=min_size) for levels in levels_of(probabilities, threshold)])
    foreground = 1 - all_classes(probabilities)[:, 0]
    return np.stack([foreground_instances(image, threshold=threshold, min_size=min_size) for image in foreground])


def foreground_only(probabilities: np.ndarray) -> np.ndarray:
    """(N, 2, H, W), background and all that is not, of (N, K, H, W)."""
    return np.stack([probabilities[:, 0], 1 - probabilities[:, 0]], axis=1)


def all_classes(probabilities: np.ndarray) -> np.ndarray:
    """(N, K, H, W), background first; a sigmoid network gives the foreground alone."""
    return probabilities if probabilities.shape[1] > 1 else np.concatenate([1 - probabilities, probabilities], axis=1)
