"""The exceptions that bad input raises. Both are one line that a user can act on; the command line prints just that line."""

from __future__ import annotations


class InputError(ValueError):
    """A value, shape, size or file that cannot be used; the message says what was given, expected and what to do."""


class InputTypeError(InputError, TypeError):
    """An argument of the wrong type or dtype: a ``ValueError``, as every :class:`InputError`, and a ``TypeError``."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot do the work: not built, not loadable, no kernel for the device."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
