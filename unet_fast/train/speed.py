"""How fast a run trains: images a second, with everything inside that a step does."""

from __future__ import annotations

import time

import torch

from unet_fast.train.graph import WARM_UP
from unet_fast.train.trainer import Trainer

_UNTIMED = WARM_UP + 2  # steps that load kernels, choose algorithms and capture the graph


def measure(trainer: Trainer, steps: int = 50) -> float:
    """Images a second of ``steps`` training steps, after those that set things up; the trainer goes on by that many.

    A step is all of it: draw, warp, grey values, weight map, network, loss, gradients, optimizer, running average; on a GPU
    a replay of its CUDA graph. Wall time, from a device that has nothing to do to one that has done all.
    """
    speed = Speed(trainer)
    for _ in range(_UNTIMED + steps):
        trainer.train_step()
        speed.step()
    _wait(trainer.device)
    speed.pause()
    value = speed.images_per_second
    assert value is not None  # steps have been timed
    return value


class Speed:
    """Wall time of the steps of a run, without what is done between them."""

    def __init__(self, trainer: Trainer) -> None:
        self._device, self._images = trainer.device, trainer.config.batch_size * trainer.world.size
        self._untimed = _UNTIMED
        self._timed, self._seconds = 0, 0.0
        self._began: float | None = None

    def step(self) -> None:
        """A step has been launched."""
        if self._untimed > 0:
            self._untimed -= 1
            if self._untimed == 0:
                _wait(self._device)
                self._began = time.perf_counter()
        else:
            self._timed += 1

    def pause(self) -> None:
        """All steps are done on the device, and something else begins."""
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._began = None

    def resume(self) -> None:
        """Steps go on."""
        if self._untimed == 0:
            self._began = time.perf_counter()

    @property
    def images_per_second(self) -> float | None:
        """Of the steps up to the last pause; None while there are none."""
        return self._timed * self._images / self._seconds if self._timed and self._seconds > 0 else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
