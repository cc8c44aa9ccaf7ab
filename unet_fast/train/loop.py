"""A training run from configuration to run folder: steps, validation, checkpoints, log, pictures."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from unet_fast import data
from unet_fast.errors import InputError
from unet_fast.files import ensure_folder, refuse_read
from unet_fast.predict.instances import MIN_SIZE
from unet_fast.train import distributed, memory, pictures, run_folder
from unet_fast.train.checkpoint import load_tensors
from unet_fast.train.config import TrainConfig
from unet_fast.train.dataset import DeviceData, least_size
from unet_fast.train.progress import Bar
from unet_fast.train.run_folder import CHECKPOINT, CONFIG, PREVIEW, MetricsLog
from unet_fast.train.signals import Interruption
from unet_fast.train.speed import Speed
from unet_fast.train.trainer import Trainer
from unet_fast.train.validation import NOTHING_COUNTS, Validation, cannot_judge, predict_pair, validate
from unet_fast.train.windows import on_device, sampled
from unet_fast.train.writer import CheckpointWriter

# of a budget in minutes, at most this part goes into validations before the last one
VALIDATION_SHARE = 0.03
LOG_ROWS = 100  # rows of metrics.csv in a whole run, besides those of validations


@dataclass(frozen=True)
class Summary:
    """What a run ended with.

    Attributes:
        folder: the run folder.
        steps, seconds: of the whole run, earlier parts included.
        loss: the mean of the last logged steps.
        validation: the scores of the best network; None without validation images.
        interrupted: whether a signal ended the run early, with a checkpoint to continue from.
        signal: its number, or None.
        images_per_second: tiles trained on a second in this part, without validations and the first steps, which set
            things up; None for a few steps.
    """

    folder: Path
    steps: int
    seconds: float
    loss: float
    validation: Validation | None
    interrupted: bool
    signal: int | None = None
    images_per_second: float | None = None


def train(
    config: TrainConfig,
    training: data.Pair | data.Dataset,
    validation: data.Pair | None,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    announce: Callable[[str], None] = print,
) -> Summary:
    """Train a network and fill the run folder ``out``.

    On a GPU a step is one CUDA graph, and the host waits for it only where a row of the log or a validation is due.
    Checkpoints are copied between two steps and written by a thread.

    Args:
        config: what to do; saved as config.json. With ``resume`` it must describe the same network and optimizer.
        training, validation: images and labels; without validation images the last weights are the best. A pair lies on the
            device; of a data set every step reads windows from the files, see :mod:`unet_fast.train.windows`.
        out: the run folder; see :mod:`unet_fast.train.run_folder` for what it gets.
        resume: continue from the folder's checkpoint; without one the run starts anew.
        progress: show a progress bar.
        announce: called with lines worth reading.

    Returns:
        A :class:`Summary`. Ctrl-C, SIGTERM and SIGHUP end the run between two steps with a checkpoint, from which it goes
        on as if nothing had happened, and ``interrupted=True``.

    Raises:
        InputError: the folder already holds a run and ``resume`` is off, another process trains into it, the data do not
            fit the network, the loss is no longer finite, or memory is too small (naming batch and tile that fit).
        OSError: the folder cannot be written.
    """
    folder, here = ensure_folder(out), distributed.world()
    with run_folder.locked(folder) if here.main else nullcontext():
        if here.main and not resume and (folder / CONFIG).exists():
            raise InputError(f"{folder} already holds a run; continue it with --resume or choose another --out")
        if config.processes != here.size:
            raise InputError(
                f"processes is {config.processes}, but {here.size} train; start as many with torchrun --nproc-per-node"
            )
        channels = training.channels
        if channels != config.model["in_channels"]:
            raise InputError(f"the images have {channels} channels but the network takes {config.model['in_channels']}")
        if training.num_classes > max(config.num_classes, 2):
            raise InputError(
                f"the labels have {training.num_classes} classes but the network gives {config.num_classes}"
            )
        if config.separate == "cores" and config.min_size is None:
            config = replace(config, min_size=least_size(sampled(training)))
        device_data = on_device(config, training)
        trainer: Trainer | None = None
        try:
            with distributed.losing_no_process("to continue, repeat the command with --resume"):
                trainer = Trainer(config, device_data)
                return _Run(trainer, validation, folder, distributed.only_main(announce)).go(resume, progress)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        finally:
            device_data.close()
        # outside of the handler, whose traceback holds on to the tensors of the run
        trainer = None
        gc.collect()
        raise memory.explain_out_of_memory(config, lambda changed: _try_step(changed, device_data))


def _try_step(config: TrainConfig, device_data: DeviceData) -> None:
    trainer = Trainer(config, device_data)
    trainer.compute()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


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
        self.main = trainer.world.main  # of several processes one logs, validates and writes
        self.log = MetricsLog(folder)
        self.writer = CheckpointWriter(folder / CHECKPOINT)
        self.speed = Speed(trainer)
        self.last_loss = math.nan
        self.best: Validation | None = None
        self.blind = None if validation is None else cannot_judge(validation, trainer.config.checkpoints.best_by)
        self._said_infinite = False
        self._validated = 0.0  # seconds of this part of the run
        self.finished = False  # whether the last row of the log is that of the end of the budget
        self._preview: Callable[[Path], Path] | None = None

    def go(self, resume: bool, progress: bool) -> Summary:
        trainer, config = self.trainer, self.config
        refuse_read(self.folder / name for name in run_folder.WRITTEN)  # images, and the weights of an encoder
        if resume and (self.folder / CHECKPOINT).exists():
            trainer.load(self.folder / CHECKPOINT)
            if self.main and not self.log.keep_until(trainer.step):
                kept = len(self.log.rows)
                self.announce(f"{self.log.path} is damaged; its first {kept} rows are kept, the others are gone")
            self.best = _best_so_far(self.folder)
            finished = self.main and trainer.progress() >= 1 and self.log.ends_with(trainer.step)
            self.finished = distributed.largest(finished)[0] > 0
            self.announce(f"going on after step {trainer.step} ({trainer.seconds:.0f} s)")
        else:
            self._preview = pictures.preview(trainer)
        before = trainer.step
        if self.blind is not None:
            self.announce(f"{self.blind}: they cannot choose the best weights, so the last ones are kept")
        by_steps = config.budget.steps is not None
        total = float(config.budget.steps or 0) if by_steps else float(config.budget.minutes or 0) * 60
        with Interruption() as interruption, self.writer:
            with Bar(
                total, trainer.step if by_steps else trainer.seconds, by_steps=by_steps, shown=progress and self.main
            ) as bar:
                signal = self._steps(bar, by_steps, interruption)
            interrupted = signal is not None and trainer.progress() < 1
            if not interrupted and not self.finished:
                self._log(validate=True)
            if self.main and not self.finished and (trainer.step > before or not interrupted):
                self.writer.submit(*trainer.state())
                self.writer.wait()
        if self.main:
            pictures.results(self.folder, self.log.rows, self.validation, trainer.device)
        return Summary(
            self.folder,
            trainer.step,
            trainer.seconds,
            self.last_loss,
            self.best,
            interrupted,
            signal if interrupted else None,
            self.speed.images_per_second,
        )

    def _steps(self, bar: Bar, by_steps: bool, interruption: Interruption) -> int | None:
        """Train until the budget is used or a signal has come, whose number is returned."""
        trainer, config = self.trainer, self.config
        signal = trainer.agree(interruption.signal)
        saved_at, saved_step = time.monotonic(), trainer.step
        row = int(trainer.progress() * LOG_ROWS)
        turn = int(trainer.progress() * config.checkpoints.validations)
        first, why_eager = True, None
        while trainer.progress() < 1 and signal is None:
            trainer.train_step()
            self.speed.step()
            if first:  # a run that could not start leaves no folder, which would make the next --out fail
                first = False
                if self.main:
                    config.save(self.folder / CONFIG)
                if self.main and self._preview is not None:
                    self._preview(self.folder / PREVIEW)
            if trainer.run_step.reason != why_eager:
                why_eager = trainer.run_step.reason
                self.announce(f"training steps run without a CUDA graph: {why_eager}")
            done = trainer.progress()
            text = None
            due = int(done * config.checkpoints.validations) > turn and done < 1
            if due or (int(done * LOG_ROWS) > row and done < 1):  # the last row comes with the last validation
                row, turn = int(done * LOG_ROWS), int(done * config.checkpoints.validations)
                self._log(validate=due, last=False)
                text = f"loss {self.last_loss:.4f}" + self._best_text()
            bar.show(trainer.step if by_steps else trainer.seconds, text)
            self.writer.check()
            many = config.checkpoints.steps is not None and trainer.step - saved_step >= config.checkpoints.steps
            many = many or time.monotonic() - saved_at >= config.checkpoints.seconds
            if self.main and many and not self.writer.busy:
                self.writer.submit(*trainer.state())
                saved_at, saved_step = time.monotonic(), trainer.step
            signal = trainer.agree(interruption.signal)
        return signal

    def _best_text(self) -> str:
        if self.best is None:
            return ""
        if self.best.average_precision is not None:
            return f", best average precision {self.best.average_precision:.4f}"
        return f", best pixel error {self.best.pixel_error:.4f}"

    def _affordable(self) -> bool:
        """Whether a validation before the last one leaves a budget in minutes to training; the first one has to be tried."""
        if self.config.budget.steps is not None or self._validated == 0:
            return True
        return self._validated + self.trainer.reserved <= VALIDATION_SHARE * self.trainer.seconds

    def _log(self, *, validate: bool, last: bool = True) -> None:
        """Write a row of metrics.csv; the losses since the last one are fetched from the device."""
        trainer = self.trainer
        losses = trainer.take_losses()
        self.speed.pause()
        row = {"step": trainer.step, "seconds": trainer.seconds, "lr": trainer.learning_rate}
        if losses is not None:
            self.last_loss, *heads = losses
            row["loss"] = self.last_loss
            row.update({f"{run_folder.HEAD}{number}": value for number, value in enumerate(heads, start=1)})
            if not math.isfinite(self.last_loss):
                raise InputError(
                    f"training diverged: the loss is {self.last_loss} at step {trainer.step}; "
                    "lower the learning rate (--lr) and start again from the last checkpoint (--resume)"
                )
        if self.main and (losses is not None or validate):
            if validate and (last or self._affordable()):
                row.update(self._validate())
            self.log.add(**row)
        self.speed.resume()

    def _validate(self) -> dict[str, float]:
        trainer = self.trainer
        model = trainer.evaluated_model()
        blind = self.blind
        if self.validation is None or blind == NOTHING_COUNTS:
            run_folder.save_model(self.folder, model, {"step": trainer.step})
            return {}
        began = time.monotonic()
        scores = validate(
            predict_pair(model, self.config, self.validation),
            self.validation,
            trainer.loss.loss,
            separate=self.config.separate,
            min_size=self.config.min_size or MIN_SIZE,
            threshold=0.5 if self.config.threshold is None else self.config.threshold,
        )
        criterion = scores.loss if self.config.checkpoints.best_by == "loss" else scores.criterion
        if blind is not None or not math.isfinite(criterion):
            if blind is None and not self._said_infinite:
                self._said_infinite = True
                self.announce(
                    f"the validation of step {trainer.step} gives {criterion}, by which no weights can be chosen"
                )
            if self.best is None:  # the last weights are better than none
                run_folder.save_model(self.folder, model, {"step": trainer.step})
        elif criterion <= trainer.best or self.best is None:
            trainer.best, self.best = criterion, scores
            run_folder.save_model(self.folder, model, {"step": trainer.step, **asdict(scores)})
        # a budget in minutes includes the last validation
        trainer.reserve(time.monotonic() - began)
        self._validated += trainer.reserved
        values = {"val_loss": scores.loss, "val_pixel_error": scores.pixel_error, "val_dice": scores.dice}
        more = {"val_rand_error": scores.rand_error, "val_average_precision": scores.average_precision}
        return {**values, **{name: value for name, value in more.items() if value is not None}}
