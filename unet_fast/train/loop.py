"""A training run from configuration to run folder: steps, validation, checkpoints, log, pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from unet_fast import data, metrics, plots
from unet_fast.errors import InputError
from unet_fast.files import ensure_folder
from unet_fast.predict import OverlapTile
from unet_fast.train import run_folder
from unet_fast.train.checkpoint import load_tensors
from unet_fast.train.config import TrainConfig, resolve_device
from unet_fast.train.dataset import IGNORED, prepare
from unet_fast.train.losses import logits_of
from unet_fast.train.run_folder import CHECKPOINT, CONFIG, MetricsLog
from unet_fast.train.trainer import Trainer

LOG_ROWS = 100  # rows of metrics.csv in a whole run, besides those of validations
PREVIEW_TILES = 6


@dataclass(frozen=True)
class Validation:
    """Scores of one validation; foreground is all but class 0. ``rand_error`` is None for several classes."""

    loss: float
    pixel_error: float
    rand_error: float | None
    dice: float

    threshold: float = 0.5  # of the best Dice coefficient of the foreground

    @property
    def criterion(self) -> float:
        """The mean of pixel and Rand error, or 1 - Dice with several classes: less is better."""
        return 1 - self.dice if self.rand_error is None else (self.pixel_error + self.rand_error) / 2


@dataclass(frozen=True)
class Summary:
    """What a run ended with. ``validation`` is the best one; None without validation images."""

    folder: Path
    steps: int
    seconds: float
    loss: float
    validation: Validation | None
    interrupted: bool


def predict_pair(model: torch.nn.Module, config: TrainConfig, pair: data.Pair) -> np.ndarray:
    """(N, K, H, W) float32 probabilities of a network for the images of a pair, without averaging over versions."""
    predictor = OverlapTile(model, tile=max(config.tile, 256), padding=config.border, amp=config.amp)
    return np.asarray(predictor(data.normalize(pair.images)))


def validate(probabilities: np.ndarray, pair: data.Pair, loss: torch.nn.Module) -> Validation:
    """Scores of (N, K, H, W) probabilities against the labels of ``pair``; ignored pixels count nowhere.

    The loss is ``loss`` without weights per pixel; K = 1 is the foreground of two classes.
    """
    classes = data.to_classes(pair.labels, pair.kind)
    instances = data.to_instances(pair.labels, pair.kind)
    target = classes
    if pair.ignored is not None:
        target = np.where(pair.ignored, IGNORED, classes)
        # background in both: neither a hit nor a miss to the scores, all of which are about the foreground
        classes, instances = (np.where(pair.ignored, 0, labels) for labels in (classes, instances))
        probabilities = np.where(pair.ignored[:, None], 0, probabilities)
        if probabilities.shape[1] > 1:
            probabilities[:, 0] += pair.ignored
    value = float(loss(logits_of(torch.from_numpy(probabilities)), torch.from_numpy(target)))
    probabilities = _all_classes(probabilities)
    dice = metrics.dice(probabilities.argmax(1), classes, num_classes=probabilities.shape[1])
    foreground = 1 - probabilities[:, 0]
    pixel = metrics.pixel_error(foreground, classes > 0)
    rand = metrics.rand_error(foreground, instances) if probabilities.shape[1] == 2 and instances.any() else None
    threshold = metrics.best_threshold(foreground, classes > 0, metric="dice").threshold if classes.any() else 0.5
    return Validation(value, pixel, rand, dice, float(threshold))


def _all_classes(probabilities: np.ndarray) -> np.ndarray:
    """(N, K, H, W), background first; a sigmoid network gives the foreground alone."""
    return probabilities if probabilities.shape[1] > 1 else np.concatenate([1 - probabilities, probabilities], axis=1)


def train(
    config: TrainConfig,
    training: data.Pair,
    validation: data.Pair | None,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    announce: Callable[[str], None] = print,
) -> Summary:
    """Train a network and fill the run folder ``out``.

    Args:
        config: what to do; saved as config.json. With ``resume`` it must describe the same network and optimizer.
        training, validation: images and labels; without validation images the last weights are the best.
        out: the run folder; see :mod:`unet_fast.train.run_folder` for what it gets.
        resume: go on from the folder's checkpoint; without one the run starts anew.
        progress: show a progress bar.
        announce: called with lines worth reading.

    Returns:
        A :class:`Summary`. Ctrl-C ends the run with a checkpoint and ``interrupted=True``.

    Raises:
        InputError: the folder already holds a run and ``resume`` is off, the data do not fit the network, or the loss
            is no longer finite.
        OSError: the folder cannot be written.
    """
    folder = ensure_folder(out)
    if not resume and (folder / CONFIG).exists():
        raise InputError(f"{folder} already holds a run; go on with --resume or choose another --out")
    channels = training.images.shape[1]
    if channels != config.model["in_channels"]:
        raise InputError(f"the images have {channels} channels but the network takes {config.model['in_channels']}")
    if training.num_classes > max(config.num_classes, 2):
        raise InputError(f"the labels have {training.num_classes} classes but the network gives {config.num_classes}")
    device_data = prepare(
        replace(training, num_classes=max(config.num_classes, 2)), resolve_device(config.device), balance=config.balance
    )
    run = _Run(Trainer(config, device_data), validation, folder, announce)
    config.save(folder / CONFIG)  # what could not start leaves no run behind, which --out would be refused for
    if resume and (folder / CHECKPOINT).exists():
        run.trainer.load(folder / CHECKPOINT)
        run.log.keep_until(run.trainer.step)
        run.best = _best_so_far(folder)
        announce(f"going on after step {run.trainer.step} ({run.trainer.seconds:.0f} s)")
    else:
        _draw_preview(run.trainer, folder / "preview.png")
    return run.go(progress)


def write_preview(config: TrainConfig, pair: data.Pair, path: str | Path) -> None:
    """A picture of augmented tiles, labels and weight maps, as training with ``config`` on ``pair`` would see them."""
    _draw_preview(Trainer(config, prepare(pair, resolve_device(config.device), balance=config.balance)), Path(path))


def _draw_preview(trainer: Trainer, path: Path) -> None:
    state = trainer.generator.get_state()
    source = trainer.data.images
    grid = torch.from_numpy(plots.grid_image((source.shape[2], source.shape[3]))).to(trainer.device)
    images, (*maps, grids) = trainer.augmenter.sample(
        source, (*trainer.data.maps, grid.expand(len(source), -1, -1)), PREVIEW_TILES, generator=trainer.generator
    )
    classes, weights = trainer.weigh(maps)
    classes, weights = classes.clamp(min=0), weights.masked_fill(classes == IGNORED, 0)
    trainer.generator.set_state(state)  # the run's draws stay the same
    plots.preview(images.cpu().numpy(), classes.cpu().numpy(), weights.cpu().numpy(), path, grids=grids.cpu().numpy())


def _best_so_far(folder: Path) -> Validation | None:
    """The scores that an interrupted run saved with its best weights."""
    path = folder / run_folder.WEIGHTS
    state = load_tensors(path)[1] if path.exists() else {}
    names = [item.name for item in fields(Validation)]
    return Validation(**{name: state[name] for name in names}) if all(name in state for name in names) else None


class _Run:
    """The loop around a trainer: when to log, validate and save."""

    def __init__(
        self, trainer: Trainer, validation: data.Pair | None, folder: Path, announce: Callable[[str], None]
    ) -> None:
        self.trainer, self.validation, self.folder, self.announce = trainer, validation, folder, announce
        self.config = trainer.config
        self.log = MetricsLog(folder)
        self.losses: list[torch.Tensor] = []  # of the steps since the last row, with those of all heads behind
        self.last_loss = math.nan
        self.best: Validation | None = None

    def go(self, progress: bool) -> Summary:
        trainer, config = self.trainer, self.config
        by_steps = config.steps is not None
        total = float(config.steps or 0) if by_steps else float(config.minutes or 0) * 60
        bar = tqdm(
            total=total,
            initial=min(total, trainer.step if by_steps else trainer.seconds),
            disable=None if progress else True,
            desc="training",
            bar_format=None if by_steps else "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
            dynamic_ncols=True,
        )
        interrupted = False
        try:
            with bar:
                self._steps(bar, by_steps)
        except KeyboardInterrupt:
            interrupted = True
        if not interrupted:
            self._log(validate=True)
        trainer.save(self.folder / CHECKPOINT)
        self._pictures()
        return Summary(self.folder, trainer.step, trainer.seconds, self.last_loss, self.best, interrupted)

    def _steps(self, bar: tqdm, by_steps: bool) -> None:
        trainer, config = self.trainer, self.config
        saved_at, saved_step = time.monotonic(), trainer.step
        row = int(trainer.progress() * LOG_ROWS)
        turn = int(trainer.progress() * config.validations)
        while trainer.progress() < 1:
            loss, heads = trainer.train_step().view(1), trainer.loss.head_losses
            self.losses.append(loss if heads is None or len(heads) == 1 else torch.cat([loss, heads]))
            done = trainer.progress()
            bar.update((trainer.step if by_steps else min(bar.total, trainer.seconds)) - bar.n)
            due = int(done * config.validations) > turn and done < 1
            if due or int(done * LOG_ROWS) > row:
                row, turn = int(done * LOG_ROWS), int(done * config.validations)
                self._log(validate=due)
                bar.set_postfix_str(f"loss {self.last_loss:.4f}" + self._best_text())
            if (
                trainer.step - saved_step >= config.checkpoint_steps
                or time.monotonic() - saved_at >= config.checkpoint_seconds
            ):
                self._log(validate=False)
                trainer.save(self.folder / CHECKPOINT)
                saved_at, saved_step = time.monotonic(), trainer.step

    def _best_text(self) -> str:
        return "" if self.best is None else f", best pixel error {self.best.pixel_error:.4f}"

    def _log(self, *, validate: bool) -> None:
        """Write a row of metrics.csv; the losses since the last one are fetched from the device together."""
        trainer = self.trainer
        row = {"step": trainer.step, "seconds": trainer.seconds, "lr": trainer.optimizer.param_groups[0]["lr"]}
        if self.losses:
            self.last_loss, *heads = torch.stack(self.losses).double().mean(0).tolist()
            self.losses.clear()
            row["loss"] = self.last_loss
            row.update({f"{run_folder.HEAD}{number}": value for number, value in enumerate(heads, start=1)})
            if not math.isfinite(self.last_loss):
                raise InputError(
                    f"training diverged: the loss is {self.last_loss} at step {trainer.step}; "
                    "lower the learning rate (--lr) and start again from the last checkpoint (--resume)"
                )
        elif not validate:
            return
        if validate:
            row.update(self._validate())
        self.log.add(**row)

    def _validate(self) -> dict[str, float]:
        trainer = self.trainer
        model = trainer.evaluated_model()
        if self.validation is None:
            run_folder.save_model(self.folder, model, {"step": trainer.step})
            return {}
        began = time.monotonic()
        scores = validate(predict_pair(model, self.config, self.validation), self.validation, trainer.loss.loss)
        criterion = scores.loss if self.config.best_by == "loss" else scores.criterion
        if criterion < trainer.best:
            trainer.best, self.best = criterion, scores
            run_folder.save_model(self.folder, model, {"step": trainer.step, **asdict(scores)})
        # a budget in minutes includes the last validation
        trainer.reserve(time.monotonic() - began)
        values = {"val_loss": scores.loss, "val_pixel_error": scores.pixel_error, "val_dice": scores.dice}
        return values if scores.rand_error is None else {**values, "val_rand_error": scores.rand_error}

    def _pictures(self) -> None:
        """loss.png and overlay.png of the best network."""
        if self.log.rows:
            plots.loss_curve(self.log.rows, self.folder / "loss.png")
        if self.validation is None or not (self.folder / run_folder.WEIGHTS).exists():
            return
        model, config = run_folder.load_model(self.folder, self.trainer.device)
        shown = self.validation.select(list(range(min(4, len(self.validation)))))
        probabilities = _all_classes(predict_pair(model, config, shown))
        truth = data.to_classes(shown.labels, shown.kind) > 0
        plots.overlay(
            shown.images,
            truth,
            1 - probabilities[:, 0],
            self.folder / "overlay.png",
            names=shown.names,
            ignored=shown.ignored,
        )
