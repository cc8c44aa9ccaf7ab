"""One training step and the state that it changes: network, running average, optimizer, random generator, position.

All of it that lies on the device are tensors that stay where they are, and :meth:`Trainer.compute` is a function of them
alone: it reads no value back and copies nothing from the host, so that on a GPU it becomes one CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from unet_fast import models, ops
from unet_fast.augment import Augmenter
from unet_fast.errors import InputError
from unet_fast.train import distributed
from unet_fast.train.average import RunningAverage
from unet_fast.train.checkpoint import (
    check_finite,
    copy_checked,
    create_state,
    flatten_optimizer,
    load_tensors,
    restore_optimizer,
    save_tensors,
    under_prefix,
    with_prefix,
)
from unet_fast.train.config import TrainConfig
from unet_fast.train.dataset import IGNORED, DeviceData
from unet_fast.train.graph import GraphedStep
from unet_fast.train.losses import MEANS_OF_PIXELS, HeadLoss, create_loss
from unet_fast.train.lowered import LoweredWeights
from unet_fast.train.schedule import learning_rate

_FAR = 1_000_003  # between the seeds of processes


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) images with the strides of channels-last.

    One channel is both layouts at once to torch, which keeps what it has; a convolution then takes the layout from the
    strides, and would write its output, the largest map of all, the other way round.
    """
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    images = images.contiguous()
    return images.as_strided(images.shape, (images.stride(0), 1, images.shape[3], 1))


@contextmanager
def _fastest_algorithms(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its algorithms once for each shape, unless the user wants results that can be repeated."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled() or cudnn.deterministic:
        yield
        return
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


class Trainer:
    """Runs steps of a configuration on data that lie on its device.

    ``step`` counts the optimizer steps done, ``seconds`` the time spent in all runs of this folder, ``reserved`` those of a budget in
    minutes that are left for the last validation.
    """

    def __init__(self, config: TrainConfig, data: DeviceData) -> None:
        self.config, self.data = config, data
        self.device = data.images.device
        torch.manual_seed(config.seed)
        start: dict[str, Any] = {} if config.encoder_weights is None else {"weights": config.encoder_weights}
        self.model = models.create(**config.model, **start).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.world = distributed.world()
        if self.world.size > 1 and self.device.type == "cuda":
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.network = distributed.synchronised(self.model, self.device)
        # a wrapper that joins gradients knows the parameters alone
        self._call = LoweredWeights(self.model, torch.bfloat16) if config.amp and self.world.size == 1 else self.network
        if not self.world.main:  # the weights are alike by now; dropout shall not be
            torch.manual_seed(config.seed + _FAR * self.world.rank)
        self.average: RunningAverage | None = None
        if config.optimizer.average_decay > 0:
            self.average = RunningAverage(self.model, config.optimizer.average_decay)
        self.loss = HeadLoss(
            create_loss(config.loss, data.class_counts, config.model, config.tile), config.loss.head_weights
        )
        self.rate = torch.full((), config.optimizer.learning_rate, device=self.device)  # filled anew before every step
        self.optimizer = self._make_optimizer()
        create_state(self.optimizer)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        try:
            input_size = self.model.input_size(config.tile)
        except InputError as error:
            raise InputError(f"tile is {config.tile}: {error}") from error
        # the place of a window was drawn when it was read
        augmentation = replace(config.augmentation, shift=config.augmentation.shift and not data.placed)
        self.augmenter = Augmenter(input_size, config.tile, augmentation)
        self._no_weights = torch.zeros(2, device=self.device)
        self._last: torch.Tensor | None = (
            None  # the loss of the last step, and those of its heads where there are several
        )
        self._sum: torch.Tensor | None = None  # float64, over the steps since take_losses
        self._summed = 0
        self.norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        self._fixed = False  # whether their statistics stand
        self.run_step = self._graphed()
        self.step = 0
        self.learning_rate = 0.0  # of the last step
        self.best = float("inf")
        self._before = 0.0
        self._started = time.monotonic()
        self.reserved = 0.0
        self._agreed: float | None = None  # the progress that all processes act on, where the clock decides

    def _graphed(self) -> GraphedStep:
        several = f"{self.world.size} processes join their gradients" if self.world.size > 1 else None
        return GraphedStep(self.compute, self.device, [self.generator], several)

    def _fix_statistics(self) -> None:
        """From here on batch normalisation uses what it has gathered, and the running average, if there is one, takes over.

        Its weights and its statistics belong together and are those that would be validated now. The statistics of the network itself
        are those of a few tiles, and those of the average belong to other weights than the network's.
        """
        self._fixed = True
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.run_step = self._graphed()  # a graph replays what it captured

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.optimizer
        if settings.name == "sgd":
            return torch.optim.SGD(
                self.model.parameters(),
                self.rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            self.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        # the first steps run without a graph on purpose, which torch would warn of
        setattr(optimizer, "_warned_capturable_if_run_uncaptured", True)  # noqa: B010 (unknown to torch's stubs)
        return optimizer

    @property
    def seconds(self) -> float:
        """Wall time spent on this run, earlier parts included."""
        return self._before + time.monotonic() - self._started

    def progress(self) -> float:
        """The part of the budget that is used, 0 to 1. A budget in minutes keeps a reserve for the last validation."""
        if self.config.budget.steps is not None:
            return self.step / self.config.budget.steps
        return self._by_the_clock() if self._agreed is None else self._agreed

    def _by_the_clock(self) -> float:
        assert self.config.budget.minutes is not None
        return min(1.0, self.seconds / max(1e-9, self.config.budget.minutes * 60 - self.reserved))

    def agree(self, signal: int | None) -> int | None:
        """Before a step: the number of a signal that any process got, or None; all then see the progress of the first one.

        Clocks differ, and so may what they say of a budget in minutes; a process that stopped alone would leave the others
        waiting.
        """
        if self.world.size == 1:
            return signal
        by_the_clock = self.config.budget.minutes is not None and self.world.main
        progress, number = distributed.largest(self._by_the_clock() if by_the_clock else -1.0, signal or 0)
        if self.config.budget.minutes is not None:
            self._agreed = progress
        return int(number) or None

    def reserve(self, seconds: float) -> None:
        """Keep this much of a budget in minutes free for work after the last step."""
        self.reserved = seconds

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Augmented on the device: images (B, C, H, W), classes (B, h, w) int64, weights (B, h, w) float32."""
        images, maps = self.tiles(self.config.batch_size)
        return images, *self.weigh(maps)

    def tiles(self, count: int, more: Sequence[torch.Tensor] = ()) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """``count`` random tiles (count, C, H, W) and their maps; ``more`` maps (H, W) are warped alike behind them."""
        height, width = self.data.images.shape[2:]
        channels = self.data.images.shape[1]
        everywhere, first = count * self.world.size, count * self.world.rank
        # every process draws for all, and makes its own, so that together they make what one alone would
        index = self.data.draw(everywhere, self.generator)[first : first + count]
        drawn = self.augmenter.draw(
            everywhere, (height, width), channels, device=self.device, generator=self.generator
        ).rows(first, count)
        images, maps = self.data.take(index)
        images, warped = self.augmenter.apply(images, (*maps, *(each.expand(count, -1, -1) for each in more)), drawn)
        return images, tuple(warped)

    def weigh(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes and weights of label maps that were warped; the weight map is that of the warped shapes."""
        classes, instances = self.data.split(maps)
        if self.config.loss.w0 == 0:
            return classes, self.data.class_weights[classes.clamp(min=0)]
        binary = self.data.num_classes == 2
        class_weights = self.data.class_weights
        weights = ops.weight_map(
            instances,
            w0=self.config.loss.w0,
            sigma=self.config.loss.sigma,
            class_weights=class_weights if binary else self._no_weights,
        )
        return classes, weights if binary else weights + class_weights[classes.clamp(min=0)]

    def compute(self) -> None:
        """All that a step does on the device: draw, warp, grey values, weights, network, loss, gradients, update, average.

        It has no argument and no result, and waits for nothing: it reads and writes tensors that stay where they are, so
        that doing it again, or replaying its CUDA graph, is the next step. The host sets ``rate`` before.
        """
        images, classes, weights = self.batch()
        self.network.train()
        if self._fixed:
            for norm in self.norms:
                norm.eval()
        with _fastest_algorithms(self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
                loss = self.loss.of_network(self.model, _channels_last(images), classes, weights, self._call)
            self.optimizer.zero_grad(set_to_none=True)
            if self.world.size > 1 and "counted" in self.data.roles and self.config.loss.name in MEANS_OF_PIXELS:
                # the mean over the pixels that count here and elsewhere is not the mean of the means
                loss = loss * distributed.share_of_mean((classes != IGNORED).sum())
            loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        heads = self.loss.head_losses
        values = loss.detach().view(1)
        if heads is not None and len(heads) > 1:
            values = torch.cat([values, heads])
        if self._last is None:
            self._last = torch.empty_like(values)
        if self._sum is None:
            self._sum = torch.zeros_like(values, dtype=torch.float64)
        self._last.copy_(values)
        self._sum.add_(values)

    def train_step(self) -> torch.Tensor:
        """One optimizer step; returns the loss, a scalar that stays on the device. On a GPU nothing is waited for."""
        progress = self.progress()
        self.learning_rate = learning_rate(self.config.optimizer, progress, self.step)
        self.rate.fill_(self.learning_rate)
        if self.norms and not self._fixed and progress >= self.config.optimizer.statistics_until:
            self._fix_statistics()
        self.data.load(self.step)
        self.run_step()
        self.step += 1
        self._summed += 1
        assert self._last is not None
        return self._last[0].clone()  # the next step writes over it

    def take_losses(self) -> list[float] | None:
        """The mean loss of the steps since the last call, and that of each head where there are several; None for no step.

        Waits for the device.
        """
        if self._sum is None or self._summed == 0:
            return None
        means = (distributed.sum_over_processes(self._sum) / (self._summed * self.world.size)).tolist()
        self._sum.zero_()
        self._summed = 0
        return means

    def evaluated_model(self) -> torch.nn.Module:
        """The network that is validated and saved: the running average where there is one."""
        return self.model if self.average is None else self.average.module

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that a run needs to continue: tensors by name, those of the device themselves, and JSON-able values."""
        tensors = {
            **with_prefix("model", dict(self.model.state_dict())),
            **with_prefix("optimizer", flatten_optimizer(self.optimizer)),
            "random.tiles": self.generator.get_state(),
            "random.default": torch.get_rng_state(),
        }
        if self.average is not None:
            tensors.update(with_prefix("average", dict(self.average.state_dict())))
        if self._sum is not None:
            tensors["log.sum"] = self._sum
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors, {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "summed": self._summed,
            "fixed": self._fixed,
        }

    def save(self, path: Any) -> None:
        """Write a checkpoint."""
        save_tensors(path, *self.state())

    def load(self, path: Any) -> None:
        """Go on where :meth:`state` was taken. Raises ``InputError`` when the file does not fit this configuration."""
        tensors, state = load_tensors(path)
        check_finite(path, tensors)
        try:
            copy_checked(dict(self.model.state_dict()), under_prefix("model", tensors))
            if self.average is not None:
                copy_checked(dict(self.average.state_dict()), under_prefix("average", tensors))
            restore_optimizer(self.optimizer, under_prefix("optimizer", tensors))
            self.generator.set_state(tensors["random.tiles"])
            if self.world.main:
                torch.set_rng_state(tensors["random.default"])
            else:
                torch.manual_seed(self.config.seed + _FAR * self.world.rank + int(state["step"]))
            if self.device.type == "cuda" and "random.cuda" in tensors and self.world.main:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            self.step, self.best = int(state["step"]), float(state["best"])
            self._before = float(state["seconds"])
            self._summed = int(state.get("summed", 0))
            self._fixed = bool(state.get("fixed", False))
            self._sum = tensors["log.sum"].to(self.device) if "log.sum" in tensors else None
            if self.step < 0 or not self._before >= 0 or self._summed < 0:
                raise ValueError("its position is below 0")
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{path} does not fit this run's configuration ({first})") from error
        self._started = time.monotonic()
