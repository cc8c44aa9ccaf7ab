"""Checks of the arguments that several networks share. Each raises one clear :class:`InputError`."""

from __future__ import annotations

from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.blocks import NORMS

_DEEPEST = 12  # the lowest level of a network with 64 channels then has 262,144
_WIDEST = 2**20  # channels; beyond 2**63 torch raises errors of its own


def check_counts(**counts: int) -> None:
    """Raise unless every value is an int of at least 1; ``depth`` is 12 at most, the others 2**20."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputTypeError(f"{name} is {value!r}, expected an int")
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
        most = _DEEPEST if name == "depth" else _WIDEST
        if value > most:
            raise InputError(f"{name} is {value}, expected at most {most}")


def check_norm(norm: str | None) -> None:
    """Raise unless ``norm`` is ``None`` or the name of a normalisation."""
    if norm is not None and norm not in NORMS:
        raise InputError(f"norm is {norm!r}, expected None or one of {', '.join(map(repr, NORMS))}")


def check_probability(name: str, value: float) -> None:
    """Raise unless ``value`` is a probability below 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < 1.0:
        raise InputError(f"{name} is {value!r}, expected a probability from 0 to less than 1")


def check_flag(name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InputTypeError(f"{name} is {value!r}, expected True or False")
