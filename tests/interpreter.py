"""Triton's interpreter without what it does again and again: it takes half the time, and finds the same.

Each function that a kernel calls would look through the whole of triton.language for what has to be replaced there, which
the launch has replaced already; each value would make a table of all dtypes; and whether integers overflow would be computed
at each addition, but asserted with Triton's debug option only.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np


def hurry() -> None:
    """To be called once TRITON_INTERPRET is set."""
    from triton.runtime import interpreter

    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Replace a module of the language unless it is replaced. A launch gives back what it has replaced, a call within does not."""
    import triton.language as tl

    modules: dict[Any, list[Any]] = {}
    replaced: list[Any] = []

    def patch_lang(function: Any) -> Any:
        if function not in modules:
            seen = [value for value in function.__globals__.values() if inspect.ismodule(value)]
            modules[function] = [module for module in (tl, tl.core) if module in seen]
        missing = [module for module in modules[function] if module not in replaced]
        if not missing:
            return None
        scope = patch(function)
        replaced.extend(missing)
        give_back = scope.restore

        def restore() -> None:
            give_back()
            replaced[:] = [module for module in replaced if module not in missing]

        scope.restore = restore
        return scope

    return patch_lang


def _remembered(numpy_dtype: Callable[[Any], np.dtype[Any]]) -> Callable[[Any], np.dtype[Any]]:
    known: dict[str, np.dtype[Any]] = {}

    def get(dtype: Any) -> np.dtype[Any]:
        if dtype.name not in known:
            known[dtype.name] = numpy_dtype(dtype)
        return known[dtype.name]

    return get
