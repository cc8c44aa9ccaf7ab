"""The parts that every member of the U-Net family is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unet_fast.nn.crop_concat import CropConcat

PADDINGS = ("valid", "same")
NORMS = ("batch", "instance", "group")
CONVOLUTIONS_PER_BLOCK = 2
_LARGEST_GROUP_COUNT = 8


def make_norm(norm: str | None, channels: int) -> nn.Module | None:
    """The normalisation named ``norm`` for ``channels`` channels, with learnt scale and shift; ``None`` for ``None``.

    "group" uses 8 groups, or as many as divide the channels evenly.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    if norm == "group":
        return nn.GroupNorm(math.gcd(_LARGEST_GROUP_COUNT, channels), channels)
    return None


class ConvBlock(nn.Sequential):
    """3x3 convolutions (two), each with normalisation, if any, and ReLU: (N, C_in, H, W) -> (N, C_out, h, w).

    h = H - 4 and w = W - 4 for ``padding="valid"``, H and W for "same" (zero padding); ``convolutions`` other than 2
    lose 2 pixels each. A convolution that a normalisation follows has no bias, as the normalisation's own shift takes
    its place, unless ``bias`` says that there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: str = "valid",
        norm: str | None = None,
        convolutions: int = CONVOLUTIONS_PER_BLOCK,
        bias: bool = False,
    ) -> None:
        with_bias = bias or norm is None
        layers: list[nn.Module] = []
        for index in range(convolutions):
            width = out_channels if index else in_channels
            layers.append(nn.Conv2d(width, out_channels, 3, padding=1 if padding == "same" else 0, bias=with_bias))
            normalisation = make_norm(norm, out_channels)
            if normalisation is not None:
                layers.append(normalisation)
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Down(nn.Module):
    """One level of the contracting path: (N, C_in, H, W) -> the block's output, for the skip, and its 2x2 max-pool.

    ``dropout`` acts on the block's output, so on the skip and on what goes down alike.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: str = "valid",
        norm: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.block = ConvBlock(in_channels, out_channels, padding, norm)
        self.dropout = nn.Dropout(dropout)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (skip, pooled)."""
        skip = self.dropout(self.block(x))
        return skip, self.pool(skip)


class Up(nn.Module):
    """One level of the expanding path: stride-2 transposed convolution, centre-cropped skip, block.

    (N, C_in, h, w) and a skip (N, C_skip, H, W) with H >= 2h, W >= 2w -> (N, C_out, ...). The channels are joined in
    the order [skip, up]; an odd difference in size crops one pixel more at the bottom / right.

    Args:
        up_channels: width of the up-sampled map; ``out_channels`` by default.
        up_kernel: kernel of the transposed convolution, even; padded so that the size doubles exactly.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        padding: str = "valid",
        norm: str | None = None,
        *,
        up_channels: int | None = None,
        up_kernel: int = 2,
    ) -> None:
        super().__init__()
        width = out_channels if up_channels is None else up_channels
        self.up = nn.ConvTranspose2d(in_channels, width, up_kernel, stride=2, padding=up_kernel // 2 - 1)
        self.concat = CropConcat()
        self.block = ConvBlock(skip_channels + width, out_channels, padding, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Up-sample ``x`` and merge it with ``skip``."""
        return self.block(self.concat(skip, self.up(x)))


def level_widths(base_channels: int, depth: int) -> list[int]:
    """Channels of the ``depth + 1`` levels: each has twice as many as the one above."""
    return [base_channels * 2**level for level in range(depth + 1)]


def contract(levels: nn.ModuleList, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Run the :class:`Down` levels; return their skips, from the finest on, and the last pooled map."""
    skips: list[Tensor] = []
    for down in levels:
        skip, x = down(x)
        skips.append(skip)
    return skips, x


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """Draw all convolution weights in ``module`` from N(0, 2 / N), N = incoming connections of a neuron; zero biases.

    A convolution's neuron sees all taps of all input channels. In a transposed convolution whose stride equals its
    kernel each output pixel receives exactly one tap of every input channel, so N = input channels
    (in general: taps / strides). Source: U-Net, 2015; He et al., 2015.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        connections = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        if isinstance(layer, nn.ConvTranspose2d):
            connections = max(1, connections // math.prod(layer.stride))
        layer.weight.normal_(0.0, math.sqrt(2.0 / connections))
        if layer.bias is not None:
            layer.bias.zero_()
