"""A small training that every campaign starts from, and whose weights are the truth of an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unet_fast import data, train


def pair() -> data.Pair:
    """Three slices with one square."""
    labels = np.zeros((3, 64, 64), np.uint8)
    labels[:, 12:40, 16:44] = 1
    grey = np.random.default_rng(0).normal(size=(3, 1, 64, 64)).astype(np.float32) + labels[:, None]
    return data.Pair(grey, labels, "mask", 2, ["a", "b", "c"])


def configuration(steps: int = 60) -> train.TrainConfig:
    """Of a network that makes a step in milliseconds."""
    return train.default_config(
        "cpu", steps=steps, base_channels=4, depth=2, tile=32, batch_size=1, in_channels=1, num_classes=2, amp=False,
        checkpoint_steps=7, seed=1,
    )  # fmt: skip


def go(folder: Path, *, resume: bool = False, steps: int = 60) -> Any:
    """Train, quietly."""
    stack = pair()
    return train.train(
        configuration(steps),
        stack,
        stack.select([0]),
        folder,
        resume=resume,
        progress=False,
        announce=lambda text: None,
    )


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of the network that prediction would use, and of the state that a resume would."""
    from safetensors.numpy import load_file

    return {
        f"{name}:{key}": value
        for name in ("model.safetensors", "checkpoint.safetensors")
        for key, value in load_file(folder / name).items()
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether all tensors agree, bit by bit."""
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
