"""What every engine offers: a network that takes images and gives logits, and says what it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unet_fast.deploy.description import Description


@dataclass
class Report:
    """What an engine is: for a person, a table or a file."""

    backend: str
    precision: str
    device: str
    versions: str
    setup_seconds: float
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = "".join(f"; {note}" for note in self.notes)
        return f"{self.backend} {self.precision} on {self.device} ({self.versions}), ready in {self.setup_seconds:.1f} s{said}"


class Engine:
    """A network behind one call: (N, C, H, W) float32 -> (N, K, h, w) float32 logits, on ``device``.

    Wherever a network of :mod:`unet_fast.models` is applied, an engine can be: :class:`unet_fast.predict.OverlapTile`
    takes either.

    Attributes:
        backend, precision: what runs, and "float32" or "bfloat16".
        description: the network's geometry, channels, and the way its run predicts.
    """

    backend: ClassVar[str]

    def __init__(self, description: Description, precision: str, device: str = "cpu") -> None:
        self.description, self.precision = description, precision
        self.device, self.dtype = torch.device(device), torch.float32
        self.geometry = description.geometry
        self.in_channels = int(description.model["in_channels"])
        self.num_classes = int(description.model["num_classes"])
        self.tile_dependence = description.tile_dependence
        self.notes: list[str] = []
        self.weights = ""  # a digest, of an engine that is not made from a torch network
        self._began = time.monotonic()
        self._ready: float | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of ``images``."""
        raise NotImplementedError

    def versions(self) -> str:
        """The libraries that run, with their versions."""
        return f"torch {torch.__version__}"

    def ready(self) -> None:
        """Call it where the engine is complete; the time since it was begun is in the report."""
        self._ready = time.monotonic() - self._began

    def report(self) -> Report:
        """What this engine is."""
        seconds = time.monotonic() - self._began if self._ready is None else self._ready
        return Report(self.backend, self.precision, str(self.device), self.versions(), seconds, list(self.notes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.precision}, {self.device})"


def as_array(images: Tensor) -> Any:
    """A contiguous float32 array of ``images``, sharing memory where it can."""
    return images.detach().to("cpu", torch.float32).contiguous().numpy()
