"""Triton's interpreter without what it does again and again: it takes far less time, and finds the same.

Each function that a kernel calls would look through the whole of triton.language for what has to be replaced there, which
the launch has replaced already; each value would make a table of all dtypes; and whether integers overflow would be computed
at each addition, but asserted with Triton's debug option only. Each value would also describe its shape anew, in dozens of
objects, where a kernel has a handful of shapes; and the shapes of two operands would be compared number by number.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np


def hurry() -> None:
    """To be called once TRITON_INTERPRET is set."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    core.block_type.__init__ = _shapes_once(core.block_type.__init__)
    core.tensor.__init__ = _described_once(core.tensor.__init__)
    core.dtype.__eq__ = _equal_to_itself(core.dtype.__eq__)
    TritonSemantic.broadcast_impl_value = _broadcast_if_need_be(TritonSemantic.broadcast_impl_value)
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


def _shapes_once(make: Callable[..., None]) -> Callable[..., None]:
    """Types of blocks: what follows from a shape is kept, so that equal shapes are one object."""
    shapes: dict[tuple[int, ...], Any] = {}
    known: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def init(block: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(size if type(size) is int else size.value for size in shape)
        key = element_ty.name, sizes
        if key not in known:
            make(block, element_ty, shape)
            shape = shapes.setdefault(sizes, block.shape)
            known[key] = {"shape": shape, "numel": block.numel, "name": block.name}
        vars(block).update(known[key], element_ty=element_ty)

    return init


def _described_once(make: Callable[..., None]) -> Callable[..., None]:
    """Tensors, which describe the shape of their type once more."""
    known: dict[int, tuple[Any, dict[str, Any]]] = {}

    def init(tensor: Any, handle: Any, kind: Any) -> None:
        shape = kind.shape if kind.is_block() else None
        if id(shape) not in known:
            make(tensor, handle, kind)
            known[id(shape)] = shape, {"shape": tensor.shape, "numel": tensor.numel}  # the shape stays, and so its id
        vars(tensor).update(known[id(shape)][1], handle=handle, type=kind, dtype=kind.scalar)

    return init


def _equal_to_itself(equal: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda one, other: one is other or equal(one, other)


def _broadcast_if_need_be(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """Operands of one shape are not broadcast."""
    return lambda semantic, lhs, rhs: (lhs, rhs) if lhs.shape is rhs.shape else broadcast(semantic, lhs, rhs)
