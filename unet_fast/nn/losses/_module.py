"""The shape that all loss modules share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Loss(nn.Module):
    """A loss with fixed ``options``, which go to its function: ``forward(logits, target, weight=None)``."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
