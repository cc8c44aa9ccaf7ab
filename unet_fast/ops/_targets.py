"""The forms in which people have targets, brought into the one that the operators take."""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from unet_fast import checks
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _protocol

DTYPES = (*checks.INTEGRAL, torch.bool)
_OF_OPERATORS = (torch.int64, torch.int32, torch.uint8)


def calculable(target: torch.Tensor) -> torch.Tensor:
    """The target itself, or in a dtype that torch compares and adds up, which it does not with 16 bits without a sign."""
    return target.int() if target.dtype == torch.uint16 else target


def has_values(tensor: torch.Tensor) -> bool:
    """Whether there are numbers to look at, here and now: on the CPU, and not a stand-in for others."""
    return (
        not torch.compiler.is_compiling()
        and not _protocol.transformed()
        and tensor.device.type == "cpu"
        and not isinstance(tensor, FakeTensor)
        and not is_traceable_wrapper_subclass(tensor)
    )


def of_pixels(name: str, value: torch.Tensor, pixels: tuple[int, ...], more: str = "") -> torch.Tensor:
    """``value`` as (N, *S), which ``pixels`` says; the channel may be written out or not."""
    if value.shape == pixels:
        return value
    if value.shape == (pixels[0], 1, *pixels[1:]):
        return value.squeeze(1)
    raise InputError(
        f"{name} has shape {tuple(value.shape)}, expected {tuple(pixels)} or {(pixels[0], 1, *pixels[1:])}: {more}"
    )


def weight_of_pixels(
    name: str, weight: torch.Tensor | None, of: str, maps: torch.Tensor, pixels: tuple[int, ...]
) -> torch.Tensor | None:
    """The checked weight of each pixel, a constant, as (N, *S), for a loss of ``maps``, whose name is ``of``."""
    if weight is None:
        return None
    checks.check_weight(name, weight, of, maps)
    return of_pixels(name, weight, pixels, "that of the target").detach()


def from_one_hot(target: torch.Tensor, classes: int, pixels: tuple[int, ...]) -> torch.Tensor:
    """A class map (N, *S) from one-hot integers or bools (N, K, *S); another target as it is, :func:`calculable`.

    On a GPU, where it would have to be waited for, nobody looks whether each pixel is of exactly one class; it is of its
    first, then.
    """
    target = calculable(target)
    if classes < 2 or target.shape != (pixels[0], classes, *pixels[1:]):
        return target
    if target.dtype.is_floating_point:
        raise InputTypeError(
            f"target of shape {tuple(target.shape)} has dtype {str(target.dtype).removeprefix('torch.')}, expected the one-hot "
            "classes as integers; where these are probabilities, dice_cross_entropy(..., lambda_dice=0.0) is their cross-entropy"
        )
    if has_values(target) and target.numel():
        plain = target.as_subclass(torch.Tensor)
        of_pixel = plain.sum(1, dtype=torch.int64)
        if bool((of_pixel != 1).any()) or bool(((plain != 0) & (plain != 1)).any()):
            raise InputError(
                f"target of shape {tuple(target.shape)} is not one-hot: exactly one class of each pixel must be 1, and the others 0; "
                "where classes overlap, use dice_cross_entropy(..., activation='sigmoid')"
            )
    return target.to(torch.uint8).argmax(1)


def class_map(target: torch.Tensor, classes: int, pixels: tuple[int, ...], more: str) -> torch.Tensor:
    """(N, *S) in a dtype of the operators, from (N, *S), (N, 1, *S) or one-hot (N, K, *S) integers or bools."""
    target = from_one_hot(target, classes, pixels)
    checks.check_dtype("target", target, DTYPES)
    target = of_pixels("target", target, pixels, more)
    return target if target.dtype in _OF_OPERATORS else target.long()
