"""The shape that all loss modules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

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


class FunctionLoss(Loss):
    """A loss whose options are the keywords of its ``function``, with the same defaults; ``check`` looks at all of them.

    A subclass sets both as static methods, and has the keywords for its signature.
    """

    function: ClassVar[Callable[..., Tensor]]
    check: ClassVar[Callable[..., None]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        parameters = inspect.signature(cls.function).parameters.values()
        cls.__signature__ = inspect.Signature([p for p in parameters if p.kind is p.KEYWORD_ONLY])  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        given = inspect.signature(type(self)).bind(**options)
        given.apply_defaults()
        self.check(**given.arguments)
        super().__init__(**given.arguments)

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss."""
        return self.function(logits, target, weight, **self.options)
