"""Checks of arguments that several public functions share. Each raises one clear :class:`InputError`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unet_fast.errors import InputError, InputTypeError

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGRAL = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)


def check_tensor(name: str, value: object) -> torch.Tensor:
    """Raise unless ``value`` is a ``torch.Tensor``."""
    if not isinstance(value, torch.Tensor):
        raise InputTypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    return value


def check_dtype(name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise unless the dtype of ``tensor`` is one of ``allowed``."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise InputTypeError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}, expected one of {names}")


def check_rank(name: str, tensor: torch.Tensor, ranks: Sequence[int], layout: str) -> None:
    """Raise unless ``tensor`` has one of the ``ranks``; ``layout`` names the dimensions, such as ``(N, C, H, W)``."""
    if tensor.dim() not in ranks:
        raise InputError(f"{name} has {tensor.dim()} dimensions, shape {tuple(tensor.shape)}; expected {layout}")


def check_same_device(first: str, a: torch.Tensor, second: str, b: torch.Tensor) -> None:
    """Raise unless both tensors live on the same device."""
    if a.device != b.device:
        raise InputError(f"{first} is on {a.device} but {second} is on {b.device}; move both to the same device")


def check_same_dtype(first: str, a: torch.Tensor, second: str, b: torch.Tensor) -> None:
    """Raise unless both tensors have the same dtype."""
    if a.dtype != b.dtype:
        raise InputTypeError(f"{first} has dtype {a.dtype} but {second} has {b.dtype}; convert one of them")


def check_ignore_index(ignore_index: int) -> None:
    """Raise unless ``ignore_index`` is an integer."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise InputTypeError(f"ignore_index is {ignore_index!r}, expected an integer")


def check_constant(name: str, tensor: torch.Tensor) -> None:
    """Raise where a gradient is wanted that a loss does not compute."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{name} requires gradients, but this loss computes none for it; pass {name}.detach()")


def check_weight(name: str, weight: torch.Tensor, of: str, maps: torch.Tensor) -> None:
    """Raise unless ``weight`` is a floating tensor on the device of ``maps``, which get gradients where it gets none."""
    check_tensor(name, weight)
    check_dtype(name, weight, FLOATING)
    check_same_device(of, maps, name, weight)
    check_constant(name, weight)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of the names in ``choices``."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"{name} is {value!r}, expected one of {expected}")
