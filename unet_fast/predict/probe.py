"""The sizes of a network that does not state them, found by trying it.

Shapes alone are tried first, on tensors without memory: which inputs the network takes, by how much its output is smaller,
and how far it halves its maps. Then a strip of which one side is NaN shows how far that side reaches into the output: NaN
goes wherever a pixel is read, through every layer, whatever the weights. Last, a tile is compared with the same place of a
larger input.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unet_fast.errors import InputError, first_line
from unet_fast.models.geometry import Geometry
from unet_fast.models.wrapped import evaluating
from unet_fast.ops import use_convolution

_BASE = 576  # divisible by 64 and 9: a side at which most strides divide evenly
_LARGEST_STRIP = 4096
# how far a tile may be from the whole, in units of the largest number
_APART = {torch.float64: 1e-9, torch.float32: 1e-3}
_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
_INSTEAD = (
    "give OverlapTile a network that states its sizes: attributes geometry (unet_fast.models.Geometry), in_channels and "
    "num_classes"
)


@dataclass(frozen=True)
class Stated:
    """What :mod:`unet_fast.models` say about themselves."""

    geometry: Geometry
    in_channels: int
    num_classes: int
    tile_dependence: str | None


def probe(model: nn.Module) -> Stated:
    """Find out the sizes of a 2-D network; it is run in evaluation and left as it was.

    Raises:
        InputError: it takes no size that was tried, its output is not a map of the resolution of its input, or it looks at
            its whole input.
    """
    weight = next(model.parameters(), None)
    if weight is None:
        raise InputError(f"{type(model).__name__} has no parameters, so its sizes cannot be found")
    # algorithms that transform whole tiles would spread a NaN to pixels that do not depend on it
    with evaluating(model), torch.no_grad(), use_convolution("direct"), torch.backends.cudnn.flags(enabled=False):
        shapes = _Shapes(model, weight)
        channels, base = _first_size(model, shapes)
        step = _step(shapes, channels, base)
        lost, residue = _loss(shapes, channels, step, base)
        smallest = _smallest(shapes, channels, step, residue, lost)
        classes = shapes(channels, base)[1]
        strips = _Strips(model, weight, channels, smallest, step, residue)
        with _without_statistics(model) as met:
            reach = strips.reach(lost)
            geometry = Geometry(step, lost // 2, smallest - lost, reach, zero_padded=reach > 0)
            strips.check(geometry)
    return Stated(geometry, channels, classes, " and ".join(sorted(met)) or None)


class _NoMap(InputError):
    """What a network returns is not one map."""


class _Shapes:
    """Forwards of tensors without memory."""

    def __init__(self, model: nn.Module, weight: Tensor) -> None:
        self.model, self.weight = model, weight
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.error = ""

    def __call__(self, channels: int, side: int) -> tuple[int, ...]:
        """The shape of the output for a square image; raises what the network raises."""
        with self.mode:
            image = torch.empty(1, channels, side, side, dtype=self.weight.dtype, device=self.weight.device)
            out = self.model(image)
        if not isinstance(out, Tensor) or out.dim() != 4:
            words = f"a tensor of {out.dim()} dimensions" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise _NoMap(
                f"{type(self.model).__name__} returns {words}, expected one tensor (N, K, H, W); "
                "wrap it in a module that returns the head to predict with"
            )
        return tuple(out.shape)

    def accepts(self, channels: int, side: int) -> tuple[int, ...] | None:
        """The shape of the output, or None where the network refuses the image."""
        log = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback of what a refusal is here
        before, log.disabled = log.disabled, True
        try:
            return self(channels, side)
        except _NoMap:
            raise
        except Exception as error:  # somebody's network: whatever it raises, the image is not one of its inputs
            self.error = first_line(error)
            return None
        finally:
            log.disabled = before


def _first_size(model: nn.Module, shapes: _Shapes) -> tuple[int, int]:
    """The channels of the input, and a side that the network takes, as it does the side larger by ``_BASE``."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    candidates = list(dict.fromkeys(module.in_channels for module in convolutions))
    for channels in candidates[:4]:
        for more in range(64):
            if shapes.accepts(channels, _BASE + more) and shapes.accepts(channels, 2 * _BASE + more):
                return channels, _BASE + more
    raise InputError(
        f"{type(model).__name__} takes no image from {_BASE} x {_BASE} to {_BASE + 63} x {_BASE + 63} pixels with "
        f"{' or '.join(map(str, candidates[:4])) or 'any'} channels ({shapes.error or 'it has no 2-D convolution'}); {_INSTEAD}"
    )


class _Sides(TorchDispatchMode):
    """Notes the sides of all maps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [
            (int(t.shape[2]), int(t.shape[3])) for t in tree_leaves(out) if isinstance(t, Tensor) and t.dim() == 4
        ]
        return out


def _step(shapes: _Shapes, channels: int, base: int) -> int:
    """The least common multiple of the strides of all maps."""
    seen = []
    for side in (base, base + _BASE):
        sides = _Sides()
        with sides:
            shapes(channels, side)
        seen.append(sides.seen)
    step = 1
    for small, large in zip(*seen, strict=False):
        for a, b in zip(small, large, strict=True):
            if b > a and _BASE % (b - a) == 0:
                step = math.lcm(step, _BASE // (b - a))
    return step


def _loss(shapes: _Shapes, channels: int, step: int, base: int) -> tuple[int, int]:
    """By how many pixels the output is smaller, and what legal inputs leave when divided by ``step``.

    Where a network takes sizes at which its poolings leave something over, it loses more there.
    """
    first = -(-_BASE // step) * step
    losses: dict[int, int] = {}
    for residue in range(step):
        sizes = [shapes.accepts(channels, first + residue + more) for more in (0, _BASE // step * step)]
        if None in sizes:
            continue
        lost = [
            first + residue + more - size[2]
            for size, more in zip(sizes, (0, _BASE // step * step), strict=True)
            if size
        ]
        if lost[0] == lost[1] and lost[0] % 2 == 0 and lost[0] >= 0:
            losses[residue] = lost[0]
        if losses.get(0) == 0:
            break
    if not losses:
        size = shapes(channels, base)
        raise InputError(
            f"{type(shapes.model).__name__} makes {size[2]} x {size[3]} pixels of {base} x {base}: its output is not a map of "
            f"the resolution of its input, smaller by as much on each side; {_INSTEAD}"
        )
    residue = min(losses, key=lambda one: (losses[one], one))
    return losses[residue], residue


def _smallest(shapes: _Shapes, channels: int, step: int, residue: int, lost: int) -> int:
    """The smallest legal input."""
    side = residue or step
    while side <= lost or shapes.accepts(channels, side) != shapes(channels, _BASE // step * step + residue)[:2] + (
        side - lost,
        side - lost,
    ):
        side += step
    return side


class _Strips:
    """Forwards of long, low images."""

    def __init__(self, model: nn.Module, weight: Tensor, channels: int, low: int, step: int, residue: int) -> None:
        self.model, self.weight, self.channels = model, weight, channels
        self.low, self.step, self.residue = low, step, residue

    def noise(self, count: int, length: int, along: int) -> Tensor:
        """Images that are ``length`` along one axis."""
        size = (self.low, length) if along == 3 else (length, self.low)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, self.channels, *size, generator=generator).to(self.weight)

    def reach(self, lost: int) -> int:
        """How many pixels of a tile's output depend on what lies beyond the tile, on the worst of its sides."""
        length = max(4 * self.step, 2 * self.low, 64)
        while length <= _LARGEST_STRIP:
            length = -(-length // self.step) * self.step
            farthest = [self._spoilt(length, lost, along) for along in (2, 3)]
            if None not in farthest:
                return max(one for one in farthest if one is not None)
            length *= 2
        raise InputError(
            f"{type(self.model).__name__} looks at its whole input, so tiles would not join; predict whole images, or "
            f"{_INSTEAD}"
        )

    def _spoilt(self, length: int, lost: int, along: int) -> int | None:
        """The same along one axis; None where the strip is too short to tell."""
        begin = length // 2 // self.step * self.step  # where a tile begins, and where one ends
        end = begin + self.residue
        strips = self.noise(2, length + self.residue, along)
        strips[0].narrow(along - 1, end, length + self.residue - end).fill_(math.nan)
        strips[1].narrow(along - 1, 0, begin).fill_(math.nan)
        nan = self.model(strips).isnan().any(1).any(2 if along == 2 else 1)  # (2, length)
        if nan.all(1).any() or not nan.any(1).all():
            return None
        first, last = int(nan[0].int().argmax()), int(nan[1].nonzero().max())
        return max(0, end - lost - first, last + 1 - begin)

    def check(self, geometry: Geometry) -> None:
        """Compare a tile with its place in a strip."""
        more, inner = geometry.spoilt, 2 * self.step
        length = geometry.input_size(geometry.covering_output(2 * more + inner))
        for along in (2, 3):
            whole = self.noise(1, length + 2 * self.step, along)
            out = self.model(whole).narrow(along, self.step + more, inner)
            tile = self.model(whole.narrow(along, self.step, length)).narrow(along, more, inner)
            apart, scale = float((out - tile).abs().max()), float(out.abs().max())
            if not apart <= _APART.get(out.dtype, 5e-2) * scale:
                raise InputError(
                    f"{type(self.model).__name__} computes something else in a tile than in the whole image ({apart:.2g} apart "
                    f"where the largest number is {scale:.2g}), so tiles would not join; predict whole images, or {_INSTEAD}"
                )


@contextmanager
def _without_statistics(model: nn.Module) -> Iterator[set[str]]:
    """Let layers that compute one number of a whole map hand on something else; yields in which words they did."""
    met: set[str] = set()

    def same(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        met.add("normalises by the statistics of its input")
        given: Tensor = args[0]
        return given

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _NORMS) and not getattr(module, "track_running_stats", False):
                stack.callback(module.register_forward_hook(same).remove)
        stack.enter_context(_Means(met))
        yield met


class _Means(TorchDispatchMode):
    """Means over whole maps, as squeeze and excitation takes them, become 0."""

    def __init__(self, met: set[str]) -> None:
        super().__init__()
        self.met = met

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        pooled = func is torch.ops.aten._adaptive_avg_pool2d.default
        if func is torch.ops.aten.mean.dim and args[0].dim() == 4 and args[1]:
            pooled = {dim % 4 for dim in args[1]} >= {2, 3}
        if not pooled:
            return out
        self.met.add("averages over its whole input")
        return torch.zeros_like(out)
