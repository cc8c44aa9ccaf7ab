"""Networks by name, so that a checkpoint or the command line can ask for one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from unet_fast.errors import InputError
from unet_fast.models.base import SegmentationModel

_MODELS: dict[str, type[SegmentationModel]] = {}
Model = TypeVar("Model", bound=SegmentationModel)


def register(name: str) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: make the network available under ``name``."""

    def add(cls: type[Model]) -> type[Model]:
        cls.name = name
        _MODELS[name] = cls
        return cls

    return add


def create(name: str, in_channels: int = 1, num_classes: int | None = None, **options: Any) -> SegmentationModel:
    """Build the network registered under ``name``; ``options`` are the arguments of its class.

    ``num_classes=None`` leaves the number of output channels to the network: 2 for "unet", 1 for those that their
    source reads through a sigmoid, 7 for "unet-dental". ``create(**model.config)`` rebuilds a network. Raises
    ``InputError`` for an unknown name (naming the known ones), an unknown option (naming the possible ones) or a
    value that the network refuses.
    """
    known = [key for key in defaults(name) if key not in ("in_channels", "num_classes")]
    for option in options:
        if option not in known:
            raise InputError(f"model {name!r} has no option {option!r}; its options are {', '.join(known)}")
    arguments: dict[str, Any] = {"in_channels": in_channels, **options}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    return _MODELS[name](**arguments)


def defaults(name: str) -> dict[str, Any]:
    """The arguments of the network ``name`` with their defaults, ``num_classes`` among them."""
    if name not in _MODELS:
        raise InputError(f"model is {name!r}, expected one of {', '.join(map(repr, list_models()))}")
    return {key: value.default for key, value in inspect.signature(_MODELS[name]).parameters.items()}


def list_models() -> list[str]:
    """The names that :func:`create` knows, sorted."""
    return sorted(_MODELS)
