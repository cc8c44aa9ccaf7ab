"""Layers that follow each other, run with as few passes over memory as the operators allow.

What can be joined is decided at each call, by what the layers are then: a layer that was replaced, or carries a hook, is
called as it is. Small images take less time than these questions, so each is asked once, of types where that will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unet_fast.accelerate.joined import UPSAMPLINGS, Joined, Late, late_layer
from unet_fast.accelerate.patch import bypassable
from unet_fast.models.fusion import has_kernel
from unet_fast.nn.conv_relu import fits
from unet_fast.nn.folding import can_fold, folded
from unet_fast.nn.norm_activation import normalised
from unet_fast.ops import conv3x3
from unet_fast.ops._convolution import by_winograd
from unet_fast.ops._tensors import autocasts

NORMS = (
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout, nn.AlphaDropout)


_LEAVES = frozenset((nn.Conv2d, *NORMS, *ACTIVATIONS, *DROPOUTS, nn.Identity, *UPSAMPLINGS))


def is_fast(layer: nn.Module) -> bool:
    """Whether :func:`unet_fast.ops.conv3x3` computes what this convolution computes."""
    return isinstance(layer, nn.Conv2d) and fits(layer) and layer.kernel_size == (3, 3) and layer.padding[0] in (0, 1)


class Closed:
    """A layer that is to be called as it is, because somebody listens to it: of no kind that is joined with others."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Any) -> Any:
        return self.layer(x)


def expand(layers: Iterable[Any]) -> list[Any]:
    """The same layers, with those that do nothing but call others in a row taken apart.

    Whether they may be bypassed is asked here, and only here: the kind of what comes out decides on everything else.
    """
    out: list[Any] = []
    for layer in layers:
        kind = type(layer)
        if not bypassable(layer, kind):
            out.append(Closed(layer))
        elif kind in _LEAVES:
            out.append(layer)
        elif kind.forward is nn.Sequential.forward:
            out += expand(layer._modules.values())
        else:
            patch = layer.__dict__.get("forward")
            inner = patch.row() if patch is not None else None
            out += [layer] if inner is None else expand(inner)
    return out


def run(layers: Sequence[nn.Module], x: Tensor | Joined) -> Tensor:
    """What ``nn.Sequential(*layers)`` computes for ``x``."""
    return _run(expand(layers), x)


def _run(rest: list[Any], x: Tensor | Joined) -> Tensor:
    while rest:
        count = group(rest)
        x = _run_group(rest[:count], x)
        rest = rest[count:]
    return x.tensor() if isinstance(x, Joined) else x


def run_late(layers: Sequence[nn.Module], x: Tensor) -> Tensor | Late:
    """As :func:`run`, for a reader who joins maps: an up-sampling at the end may wait for it."""
    *rest, last = expand(layers)
    out = _run(rest, x)
    waits = late_layer(last, out)
    return _run([last], out) if waits is None else waits


def group(layers: Sequence[Any]) -> int:
    """How many of the first layers, of :func:`expand`, are run together; they begin with a convolution or a normalisation, or it is one."""
    kind, count = type(layers[0]), 1
    if kind is nn.Conv2d:
        count = _behind(layers, count, (nn.BatchNorm2d,))
    elif kind not in NORMS:
        return 1
    return _behind(layers, count, ACTIVATIONS)


def _behind(layers: Sequence[Any], count: int, kinds: tuple[type[nn.Module], ...]) -> int:
    """``count``, and one more if one of these kinds is next, with the dropouts in front of it that do nothing now."""
    end = count
    while end < len(layers) and idle(layers[end]):
        end += 1
    return end + 1 if end < len(layers) and type(layers[end]) in kinds else count


def idle(layer: Any) -> bool:
    """Whether this layer, of :func:`expand`, hands on what it gets."""
    kind = type(layer)
    return kind is nn.Identity or (kind in DROPOUTS and (not layer.training or getattr(layer, "p", 1.0) == 0))


def _run_group(layers: Sequence[Any], x: Tensor | Joined) -> Tensor | Joined:
    first = layers[0]
    if idle(first):
        return x
    waits = late_layer(first, x)
    if waits is not None:
        return waits.tensor()
    if type(first) is not nn.Conv2d:
        return _normalise(layers, x.tensor() if isinstance(x, Joined) else x)
    behind = [layer for layer in layers[1:] if not idle(layer)]
    weight, bias = first.weight, first.bias
    # not under autocast: new weights would be lowered at each call, and rounded otherwise than those of the network
    if behind and can_fold(behind[0], first) and not autocasts(x.device.type):
        weight, bias = folded(behind[0], first)
        behind = behind[1:]
    out, behind = convolve(first, x, weight, bias, behind)
    return _normalise(behind, out) if behind else out


def _normalise(layers: Sequence[Any], x: Tensor) -> Tensor:
    """A normalisation with the activation behind it, in one operator where there is a compiled one; or any layers."""
    norm, *rest = [layer for layer in layers if not idle(layer)]
    if (
        len(rest) <= 1
        and type(norm) in NORMS
        and x.dim() == 4
        and _keep_dtypes(norm, rest, x)
        and has_kernel("norm_activation", x.device.type)
    ):
        activation, slope = _activation(rest[0]) if rest else ("none", 0.01)
        return normalised(norm, x, activation, slope)
    for layer in (norm, *rest):
        x = layer(x)
    return x


def _keep_dtypes(norm: nn.Module, rest: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether autocast, where it is on, lets these layers return the dtype that they get.

    It lowers what a PReLU gets, on every device, and widens what a group normalisation gets on a GPU.
    """
    device = x.device.type
    if not autocasts(device):
        return True
    if rest and isinstance(rest[0], nn.PReLU) and x.dtype != torch.get_autocast_dtype(device):
        return False
    return device == "cpu" or (device == "cuda" and not isinstance(norm, nn.GroupNorm))


def _activation(layer: nn.Module) -> tuple[str, Any]:
    """The name of an activation, and its slope."""
    if isinstance(layer, nn.LeakyReLU):
        return "leaky_relu", layer.negative_slope
    if isinstance(layer, nn.PReLU):
        return "prelu", layer.weight
    return ("relu" if isinstance(layer, nn.ReLU) else "silu"), 0.01


def convolve(
    layer: nn.Conv2d, x: Tensor | Joined, weight: Tensor, bias: Tensor | None, behind: list[Any]
) -> tuple[Tensor, list[Any]]:
    """The convolution of ``layer`` with these numbers, and those of ``behind`` that it did not compute as well."""
    lowered = autocasts(x.device.type)  # to a dtype that Winograd's form does not have
    whole_batch = len(x.shape) == 4  # torch's layers take an image (C, H, W) as well
    if whole_batch and is_fast(layer) and not lowered and by_winograd([x], weight, int(layer.padding[0])):
        maps = x.maps if isinstance(x, Joined) else [x]
        options: dict[str, Any] = {}
        if behind and type(behind[0]) is nn.ReLU:
            options = {"activation": "relu"}
        elif behind and type(behind[0]) is nn.LeakyReLU and behind[0].negative_slope >= 0:
            options = {"activation": "leaky_relu", "negative_slope": behind[0].negative_slope}
        out = conv3x3(maps, weight, bias, padding=int(layer.padding[0]), **options)
        return out, behind[1:] if options else behind
    whole = x.tensor() if isinstance(x, Joined) else x
    return layer._conv_forward(whole, weight, bias), behind
