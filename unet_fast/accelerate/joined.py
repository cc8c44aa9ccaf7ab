"""Maps that are joined for one reader, and maps that are written for the first time where they are joined."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.models.fusion import has_kernel
from unet_fast.ops import upsample_concat
from unet_fast.ops._tensors import autocasts, is_channels_last
from unet_fast.ops.upsample_concat import MODES

UPSAMPLINGS = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_PADDINGS = {"constant": "zeros", "replicate": "replicate"}


class Late:
    """``x`` (N, C, h, w), up-sampled by 2 and then padded, that is not written yet."""

    def __init__(self, x: Tensor, mode: str, align_corners: bool | None) -> None:
        self.x, self.mode, self.align_corners = x, mode, align_corners
        self.amounts, self.padding = (0, 0, 0, 0), "constant"

    @property
    def shape(self) -> torch.Size:
        """Of the map that it stands for."""
        left, right, top, bottom = self.amounts
        n, channels, height, width = self.x.shape
        return torch.Size((n, channels, 2 * height + top + bottom, 2 * width + left + right))

    def size(self, dim: int | None = None) -> Any:
        """As ``Tensor.size``."""
        return self.shape if dim is None else self.shape[dim]

    def padded(self, amounts: tuple[int, ...], padding: str) -> Late:
        """The same with so many columns and rows around it, as ``F.pad`` counts them."""
        other = Late(self.x, self.mode, self.align_corners)
        other.amounts, other.padding = amounts, padding  # type: ignore[assignment]
        return other

    def tensor(self) -> Tensor:
        """The map by itself."""
        up = upsampled(self.x, self.mode, self.align_corners)
        return F.pad(up, self.amounts, self.padding) if any(self.amounts) else up

    def behind(self, skip: Tensor, order: str) -> Tensor | None:
        """Joined with ``skip`` in one pass, or None where two are the way."""
        x, (left, right, top, bottom) = self.x, self.amounts
        if skip.shape[2:] != self.shape[2:] or skip.shape[0] != x.shape[0] or skip.dtype != x.dtype:
            return None
        if not 0 <= right - left <= 1 or not 0 <= bottom - top <= 1 or not has_kernel("upsample_concat", x.device.type):
            return None
        recorded = torch.is_grad_enabled() and (skip.requires_grad or x.requires_grad)
        if not recorded and not _is_slow(x, self.mode):
            return None
        padding = _PADDINGS[self.padding] if any(self.amounts) else None
        return upsample_concat(
            skip, x, mode=self.mode, align_corners=bool(self.align_corners), order=order, padding=padding
        )


def _is_slow(x: Tensor, mode: str) -> bool:
    """Whether torch's own up-sampling by itself takes longer than ours.

    One thread, AVX-512, 2 x 64 x 64 x 64 and around it, forward: contiguous ours takes 0.1 to 0.6 of the time; channels-last
    0.5 to 0.7 for bilinear of 16-bit numbers, and 1.0 to 1.4 otherwise. Joined with a skip, forward and backward 0.2 to 0.6.
    """
    return x.device.type == "cpu" and (not is_channels_last(x) or (mode == "bilinear" and x.element_size() == 2))


def upsampled(x: Tensor, mode: str, align_corners: bool | None) -> Tensor:
    """``F.interpolate(x, scale_factor=2, mode=mode, align_corners=align_corners)``."""
    if _is_slow(x, mode) and has_kernel("upsample_concat", x.device.type):
        form = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        n, _, height, width = x.shape
        nothing = torch.empty((n, 0, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=form)
        return upsample_concat(nothing, x, mode=mode, align_corners=bool(align_corners))
    return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=align_corners)


def late(x: Any, mode: str, align_corners: bool | None) -> Late | None:
    """``x`` up-sampled by 2, where that can wait."""
    fits = isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() and mode in MODES
    return Late(x, mode, align_corners) if fits else None


def late_layer(layer: Any, x: Any) -> Late | None:
    """What an up-sampling makes of ``x``, where that can wait; None for other layers and sizes."""
    if type(layer) not in UPSAMPLINGS or not doubles(layer):
        return None
    return late(x, layer.mode, layer.align_corners)


def doubles(layer: nn.Upsample) -> bool:
    """Whether it up-samples by 2, by copies or bilinearly."""
    by_two = layer.scale_factor in (2.0, (2.0, 2.0)) and layer.size is None and not layer.recompute_scale_factor
    return by_two and layer.mode in MODES


def late_interpolation(
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Late | None:
    """The same for a call of ``F.interpolate``."""
    found = None if recompute_scale_factor or antialias else late(x, mode, align_corners)
    if found is None:
        return None
    if size is None:
        by_two = scale_factor in (2, (2, 2), [2, 2])
    else:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        by_two = scale_factor is None and sides == (2 * x.shape[2], 2 * x.shape[3])
    return found if by_two else None


def late_padding(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Late | None:
    """The same for a call of ``F.pad``; of what was up-sampled, and is to be padded by nothing or more."""
    amounts = tuple(pad)
    fits = isinstance(x, Late) and not any(x.amounts) and mode in _PADDINGS and not value and len(amounts) == 4
    if not fits or not all(isinstance(amount, int) and amount >= 0 for amount in amounts):
        return None
    if autocasts(x.x.device.type) and mode == "replicate":
        return None  # which widens
    return x.padded(amounts, mode)


def written(map_: Any) -> Any:
    """The map itself, where it has waited."""
    return map_.tensor() if isinstance(map_, Late) else map_


def pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """``F.pad``, which waits where what it pads has waited and nothing is lost by it."""
    waits = late_padding(x, pad, mode, value)
    if waits is not None:
        return waits
    x = written(x)
    return x if all(isinstance(one, int) and one == 0 for one in pad) else F.pad(x, pad, mode, value)


def _tensor_of(map_: Tensor | Late) -> Tensor:
    return map_.x if isinstance(map_, Late) else map_


class Joined:
    """Maps (N, C_i, H, W) that stand for ``torch.cat(maps, 1)``, which is written only where somebody needs it."""

    def __init__(self, maps: Sequence[Tensor | Late]) -> None:
        self._maps = list(maps)

    @property
    def maps(self) -> list[Tensor]:
        """Each by itself."""
        made = [written(one) for one in self._maps]
        self._maps = [*made]
        return made

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return _tensor_of(self._maps[0]).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the joined map."""
        first, *rest = [_tensor_of(one).dtype for one in self._maps]
        return functools.reduce(torch.promote_types, rest, first)

    @property
    def shape(self) -> torch.Size:
        """That of the joined map."""
        n, _, *size = self._maps[0].shape
        return torch.Size((n, sum(one.shape[1] for one in self._maps), *size))

    def stride(self, dim: int, /) -> int:
        """That of the first map, whose layout the joined one has."""
        return _tensor_of(self._maps[0]).stride(dim)

    def tensor(self) -> Tensor:
        """The joined map itself."""
        if len(self._maps) == 2:
            one, two = self._maps
            joined = None
            if isinstance(one, Late) and isinstance(two, Tensor):
                joined = one.behind(two, "up_first")
            elif isinstance(two, Late) and isinstance(one, Tensor):
                joined = two.behind(one, "skip_first")
            if joined is not None:
                self._maps = [joined]
        maps = self.maps
        if len(maps) > 1:
            maps = [torch.cat(maps, 1)]
            self._maps = [*maps]
        return maps[0]
