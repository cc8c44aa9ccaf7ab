"""Layers that follow each other in a network of the package, each convolution with what can follow it in one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unet_fast.models.fusion import Fusion, fusible_convolution, has_kernel, untouched
from unet_fast.nn.folding import can_fold, folded
from unet_fast.nn.norm_activation import normalised
from unet_fast.ops import conv3x3, conv_bias_relu
from unet_fast.ops._convolution import THIN, by_winograd
from unet_fast.ops._tensors import autocast_dtype
from unet_fast.ops.conv3x3 import run as run_winograd


def run_layers(layers: Sequence[nn.Module], x: Tensor | Sequence[Tensor], fusion: Fusion) -> Tensor:
    """One layer after the other, each convolution with what can follow it in one operator."""
    maps = list(x) if isinstance(x, Sequence) else [x]
    index = 0
    while index < len(layers):
        layer, rest = layers[index], layers[index + 1 :]
        index += 1
        if not (fusion.convolutions and fusible_convolution(layer, JoinConv2d)):
            maps = [_call(layer, _joined(maps))]
            continue
        weight, bias = layer.weight, layer.bias
        if rest and not maps[0].is_cuda and can_fold(norm := rest[0], layer):
            weight, bias = folded(norm, layer)
            rest, index = rest[1:], index + 1
        norm_behind = rest[0] if rest and not maps[0].is_cuda and _fusible_norm(rest[0], maps[0]) else None
        if norm_behind is not None:
            rest, index = rest[1:], index + 1
        active = bool(rest) and untouched(rest[0], nn.ReLU)
        index += active
        x = convolve(maps, layer, weight, bias, active and norm_behind is None)
        maps = [x if norm_behind is None else normalised(norm_behind, x, "relu" if active else "none")]
    return _joined(maps)


def first_layer(layers: Sequence[nn.Module], padding: int) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of these layers, if all they do is a convolution of few channels and a ReLU."""
    if not layers:
        return None
    first, *rest = layers
    if not (fusible_convolution(first) and first.in_channels <= THIN and int(first.padding[0]) == padding):
        return None
    weight, bias = first.weight, first.bias
    if len(rest) == 2 and can_fold(norm := rest[0], first):
        weight, bias = folded(norm, first)
        rest = rest[1:]
    return (weight, bias) if len(rest) == 1 and untouched(rest[0], nn.ReLU) else None


def _fusible_norm(layer: nn.Module, x: Tensor) -> bool:
    """Whether one operator normalises and rectifies as this layer and a ReLU behind it do."""
    return untouched(layer, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm) and has_kernel(
        "norm_activation", x.device.type
    )


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's own call; a ReLU does not write into a view that a backward hook made, which autograd refuses."""
    if not (isinstance(layer, nn.ReLU) and layer.inplace and isinstance(x, Tensor)) or torch.compiler.is_compiling():
        return layer(x)
    if not (x.requires_grad and (x._is_view() or layer._backward_hooks or layer._backward_pre_hooks)):
        return layer(x)
    layer.inplace = False
    try:
        return layer(x)
    finally:
        layer.inplace = True


def _joined(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


def in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether neither autocast nor a bias of another dtype asks for a conversion of operands that are float32."""
    return autocast_dtype(x) is None and (bias is None or bias.dtype == weight.dtype)


def convolve(maps: list[Tensor], layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, active: bool) -> Tensor:
    """The convolution of ``layer`` with these numbers, and a ReLU where it is ``active``."""
    padding = int(layer.padding[0])
    apart = maps
    if isinstance(layer, JoinConv2d):
        x = _joined(maps)
        maps, apart = [x], [x[:, layer.skip_channels :], x[:, : layer.skip_channels]]
    if in_float32(maps[0], weight, bias) and by_winograd(apart, weight, padding):
        # without the checks of the public function, which a network need not repeat at each of its layers
        return run_winograd(apart, weight, bias, padding, "relu" if active else None)
    x = _joined(maps)
    if isinstance(layer, JoinConv2d):
        weight = layer.turned(weight)
    if active:
        return conv_bias_relu(x, weight, bias, padding=padding)
    if layer.kernel_size == (3, 3) and padding in (0, 1):
        return conv3x3(x, weight, bias, padding=padding)
    return nn.functional.conv2d(x, weight, bias, padding=padding)


class JoinConv2d(nn.Conv2d):
    """A valid 3x3 convolution of [skip, up] whose weights are kept for [up, skip].

    The fused crop and concatenation puts the skip first. Reordering the weights, which are small beside the maps,
    computes the same as reordering the maps, and the stored order stays that of the source.
    """

    def __init__(self, in_channels: int, out_channels: int, *, skip_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)
        self.skip_channels = skip_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_skip + C_up, H, W) -> (N, C_out, H - 2, W - 2)."""
        return nn.functional.conv2d(x, kernel_of(self), self.bias)

    def turned(self, weight: Tensor) -> Tensor:
        """Weights for [up, skip] in the order [skip, up]."""
        return weight.roll(self.skip_channels, 1)


def kernel_of(layer: nn.Conv2d) -> Tensor:
    """The weights of a convolution, in the order of the channels that it is given."""
    return layer.turned(layer.weight) if isinstance(layer, JoinConv2d) else layer.weight
