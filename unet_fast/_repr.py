"""How objects that are configured once and then called show themselves."""

from __future__ import annotations

import inspect


def call_repr(instance: object, *, shortened: tuple[str, ...] = ()) -> str:
    """``Name(argument=value, ...)`` from the attributes that keep the constructor's arguments under their own names.

    Values named in ``shortened``, such as a network, are shown by the name of their class alone.
    """
    shown = []
    for name in inspect.signature(type(instance)).parameters:
        value = getattr(instance, name)
        shown.append(f"{name}={type(value).__name__ if name in shortened else repr(value)}")
    return f"{type(instance).__name__}({', '.join(shown)})"
