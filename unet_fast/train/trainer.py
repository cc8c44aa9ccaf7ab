"""One training step and the state that it changes: network, running average, optimizer, random generator, position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from unet_fast import models, ops
from unet_fast.augment import Augmenter
from unet_fast.errors import InputError
from unet_fast.train.checkpoint import (
    flatten_optimizer,
    load_tensors,
    restore_optimizer,
    save_tensors,
    under_prefix,
    with_prefix,
)
from unet_fast.train.config import TrainConfig
from unet_fast.train.dataset import DeviceData
from unet_fast.train.losses import HeadLoss, create_loss
from unet_fast.train.schedule import learning_rate


def _average_function(decay: float) -> Any:
    """Exponential average whose memory grows at first, so that the random initial weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        if not averaged[0].is_floating_point():  # lists come by dtype; batch normalisation counts its batches
            torch._foreach_copy_(averaged, current)
            return
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update


class Trainer:
    """Runs steps of a configuration on data that lie on its device.

    ``step`` counts the optimizer steps done, ``seconds`` the time spent in all runs of this folder.
    """

    def __init__(self, config: TrainConfig, data: DeviceData) -> None:
        self.config, self.data = config, data
        self.device = data.images.device
        torch.manual_seed(config.seed)
        start: dict[str, Any] = {} if config.encoder_weights is None else {"weights": config.encoder_weights}
        self.model = models.create(**config.model, **start).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average: AveragedModel | None = None
        if config.average_decay > 0:
            self.average = AveragedModel(
                self.model, multi_avg_fn=_average_function(config.average_decay), use_buffers=True
            )
        self.loss = HeadLoss(create_loss(config, data.class_counts), config.head_weights)
        self.optimizer = self._make_optimizer()
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        try:
            input_size = self.model.input_size(config.tile)
        except InputError as error:
            raise InputError(f"tile is {config.tile}: {error}") from error
        self.augmenter = Augmenter(
            input_size,
            config.tile,
            shift=config.shift,
            rotation=config.rotation,
            flips=config.flips,
            elastic_sigma=config.elastic_sigma,
            elastic_grid=config.elastic_grid,
            field=config.field,
            grey=config.grey,
            padding=config.border,
            quarter_turns=config.quarter_turns,
            affine=config.affine,
        )
        self.step = 0
        self.best = float("inf")
        self._before = 0.0
        self._started = time.monotonic()
        self._deadline_reserve = 0.0

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                self.model.parameters(),
                config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=True,
            )
        return torch.optim.AdamW(
            self.model.parameters(),
            config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def seconds(self) -> float:
        """Wall time spent on this run, earlier parts included."""
        return self._before + time.monotonic() - self._started

    def progress(self) -> float:
        """The part of the budget that is used, 0 to 1. A budget in minutes keeps a reserve for the last validation."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        assert self.config.minutes is not None
        return min(1.0, self.seconds / max(1e-9, self.config.minutes * 60 - self._deadline_reserve))

    def reserve(self, seconds: float) -> None:
        """Keep this much of a budget in minutes free for work after the last step."""
        self._deadline_reserve = seconds

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Augmented on the device: images (B, C, H, W), classes (B, h, w) int64, weights (B, h, w) float32."""
        images, maps = self.augmenter.sample(
            self.data.images, self.data.maps, self.config.batch_size, generator=self.generator
        )
        return images, *self.weigh(maps)

    def weigh(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes and weights of label maps that were warped; the weight map is that of the warped shapes."""
        classes, instances = self.data.split(maps)
        if self.config.w0 == 0:
            return classes, self.data.class_weights[classes.clamp(min=0)]
        binary = self.data.num_classes == 2
        class_weights = self.data.class_weights
        weights = ops.weight_map(
            instances,
            w0=self.config.w0,
            sigma=self.config.sigma,
            class_weights=class_weights if binary else torch.zeros(2, device=self.device),
        )
        return classes, weights if binary else weights + class_weights[classes.clamp(min=0)]

    def train_step(self) -> torch.Tensor:
        """One optimizer step; returns the loss, a scalar that stays on the device."""
        images, classes, weights = self.batch()
        rate = learning_rate(self.config, self.progress(), self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            loss = self.loss.of_network(self.model, images, classes, weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def evaluated_model(self) -> torch.nn.Module:
        """The network that is validated and saved: the running average where there is one."""
        return self.model if self.average is None else self.average.module

    def save(self, path: Any) -> None:
        """Write a checkpoint."""
        optimizer_tensors, optimizer_values = flatten_optimizer(self.optimizer)
        tensors = {
            **with_prefix("model", dict(self.model.state_dict())),
            **with_prefix("optimizer", optimizer_tensors),
            "random.tiles": self.generator.get_state(),
            "random.default": torch.get_rng_state(),
        }
        if self.average is not None:
            tensors.update(with_prefix("average", dict(self.average.state_dict())))
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {"step": self.step, "seconds": self.seconds, "best": self.best, "optimizer": optimizer_values}
        save_tensors(path, tensors, state)

    def load(self, path: Any) -> None:
        """Go on where :meth:`save` stopped. Raises ``InputError`` when the file does not fit this configuration."""
        tensors, state = load_tensors(path)
        try:
            self.model.load_state_dict(under_prefix("model", tensors))
            if self.average is not None:
                self.average.load_state_dict(under_prefix("average", tensors))
            restore_optimizer(self.optimizer, under_prefix("optimizer", tensors), state["optimizer"])
            self.generator.set_state(tensors["random.tiles"])
            torch.set_rng_state(tensors["random.default"])
            if self.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            self.step, self.best = int(state["step"]), float(state["best"])
            self._before = float(state["seconds"])
        except (KeyError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{path} does not fit this run's configuration ({first})") from error
        self._started = time.monotonic()
