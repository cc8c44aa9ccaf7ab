"""The parts that every member of the U-Net family is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unet_fast.models.fusion import (
    PLAIN,
    Fusion,
    fusible_convolution,
    fusible_up_convolution,
    is_active,
    silent,
    untouched,
)
from unet_fast.models.layers import JoinConv2d, convolve, first_layer, in_float32, kernel_of, run_layers
from unet_fast.nn import CropConcat
from unet_fast.nn.folding import can_fold, folded
from unet_fast.ops import relu_pool_skip, up_conv_crop_concat, up_conv_into
from unet_fast.ops._convolution import by_winograd
from unet_fast.ops.conv3x3 import conv3x3_pool
from unet_fast.ops.up_conv_into import up_conv

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

    @property
    def lost(self) -> int:
        """Rows and columns that the output is smaller than the input."""
        return sum(
            layer.kernel_size[0] - 1 - 2 * int(layer.padding[0]) for layer in self if isinstance(layer, nn.Conv2d)
        )

    def forward(self, x: Tensor | Sequence[Tensor], fusion: Fusion = PLAIN) -> Tensor:
        """Run the layers, a convolution and the ReLU behind it as one operator where ``fusion`` says so.

        Several maps (N, C_i, H, W), whose channels stand one behind the other, count as one.
        """
        return run_layers(list(self), x, fusion)

    def reads_apart(self, like: Tensor, fusion: Fusion) -> bool:
        """Whether maps like this one may come several at a time without being joined in memory first."""
        first = self[0]
        return (
            fusion.convolutions
            and untouched(self, ConvBlock)
            and fusible_convolution(first)
            and in_float32(like, first.weight, first.bias)
            and by_winograd([like], first.weight, int(first.padding[0]))
        )

    def before_relu(self, x: Tensor, fusion: Fusion) -> tuple[Tensor, Tensor | None]:
        """What the last ReLU is applied to, as two terms: a map, and a bias (C,) or None."""
        last = self[-2]
        if not (x.is_cuda and fusible_convolution(last, JoinConv2d)):
            return run_layers(list(self)[:-1], x, fusion), None
        # the CPU's convolution adds the bias for nothing; on a GPU it would add it in a pass of its own
        x = run_layers(list(self)[:-2], x, fusion)
        return nn.functional.conv2d(x, kernel_of(last), None, padding=int(last.padding[0])), last.bias

    def pooled(
        self, x: Tensor, fusion: Fusion, skip_size: Sequence[int] | None, up_channels: int
    ) -> tuple[Tensor, Tensor] | None:
        """The max-pool of the output and its crop, see :func:`relu_pool_skip`, by the operator that convolves as well.

        None where there is no such operator: on a GPU, and while gradients are recorded.
        """
        index = len(self) - (2 if isinstance(self[-2], nn.Conv2d) else 3)
        last, norm = self[index], self[-2]
        if x.is_cuda or torch.is_grad_enabled() or not (fusion.convolutions and fusible_convolution(last)):
            return None
        weight, bias = last.weight, last.bias
        if norm is not last:
            if not can_fold(norm, last):
                return None
            weight, bias = folded(norm, last)
        padding, front = int(last.padding[0]), list(self)[:index]
        first = first_layer(front, padding) if fusion.convolutions else None
        if first is not None and in_float32(x, *first):
            joined = conv3x3_pool(x, weight, bias, padding, skip_size, up_channels, first)
            if joined is not None:
                return joined
        x = run_layers(front, x, fusion)
        joined = conv3x3_pool(x, weight, bias, padding, skip_size, up_channels)
        if joined is not None:
            return joined
        x = convolve([x], last, weight, bias, False)
        return relu_pool_skip(x, None, skip_size=skip_size, up_channels=up_channels)


class SkipBuffer(NamedTuple):
    """A skip connection that already lies where :func:`~unet_fast.ops.up_conv_into` completes it."""

    buffer: Tensor
    """(N, C_skip + C_up, h, w): the cropped skip, and room for the up-sampled map."""


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

    def forward(
        self, x: Tensor, fusion: Fusion = PLAIN, skip_size: Sequence[int] | None = None, up_channels: int = 0
    ) -> tuple[Tensor | SkipBuffer, Tensor]:
        """Return (skip, pooled); see :func:`run_and_pool` for the last three arguments."""
        if is_active(self.dropout):
            skip = self.dropout(self.block(x, fusion))
            return skip, self.pool(skip)
        return run_and_pool(self.block, self.pool, x, fusion, skip_size, up_channels)


def run_and_pool(
    block: nn.Module,
    pool: nn.Module,
    x: Tensor,
    fusion: Fusion,
    skip_size: Sequence[int] | None = None,
    up_channels: int = 0,
) -> tuple[Tensor | SkipBuffer, Tensor]:
    """The output of a :class:`ConvBlock`, for the skip, and its max-pool.

    Where ``fusion`` joins the two, the skip is cropped to ``skip_size`` (None: not cropped), and lies in a buffer with
    room for ``up_channels`` more (0: no buffer).
    """
    if not (
        fusion.contracting
        and isinstance(block, ConvBlock)
        and untouched(block, ConvBlock)
        and untouched(block[-1], nn.ReLU)
        and untouched(pool, nn.MaxPool2d)
    ):
        skip = block(x, fusion)
        return skip, pool(skip)
    joined = block.pooled(x, fusion, skip_size, up_channels)
    if joined is not None:
        pooled, buffer = joined
        return SkipBuffer(buffer) if up_channels else buffer, pooled
    x, bias = block.before_relu(x, fusion)
    pooled, buffer = relu_pool_skip(x, bias, skip_size=skip_size, up_channels=up_channels)
    return SkipBuffer(buffer) if up_channels else buffer, pooled


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

    def forward(self, x: Tensor, skip: Tensor | SkipBuffer, fusion: Fusion = PLAIN) -> Tensor:
        """Up-sample ``x`` and merge it with ``skip``."""
        if isinstance(skip, Tensor) and untouched(self.concat, CropConcat) and self.block.reads_apart(skip, fusion):
            skip, up = self.fitted(skip, x), self.up_sampled(x, fusion)
            return self.block([_centre(skip, tuple(up.shape[2:])), up], fusion)
        return self.block(self.join(x, skip, fusion), fusion)

    def up_sampled(self, x: Tensor, fusion: Fusion) -> Tensor:
        """The up-sampled map by itself."""
        return up_conv(x, self.up.weight, self.up.bias) if self._fused(fusion) else self.up(x)

    def fitted(self, skip: Tensor, x: Tensor) -> Tensor:
        """The skip as it is to be cropped for the up-sampled ``x``."""
        return skip

    def room(self, fusion: Fusion, source: nn.Module) -> int:
        """The channels that :meth:`join` can write into a :class:`SkipBuffer`; 0 where it needs the skip by itself.

        ``source``: the module whose call returns the skip. Hooks that see it, such as those of FSDP2, make it a view.
        """
        fits = self._fused(fusion) and fusion.in_place and silent(self) and silent(source)
        return self.up.out_channels if fits else 0

    def _fused(self, fusion: Fusion) -> bool:
        return fusion.expanding and fusible_up_convolution(self.up) and untouched(self.concat, CropConcat)

    def join(self, x: Tensor, skip: Tensor | SkipBuffer, fusion: Fusion) -> Tensor:
        """[skip, up-sampled ``x``] in one map."""
        if isinstance(skip, SkipBuffer):
            return up_conv_into(x, self.up.weight, self.up.bias, skip.buffer, fresh=True)
        if self._fused(fusion):
            return up_conv_crop_concat(x, self.up.weight, self.up.bias, self.fitted(skip, x))
        return self.concat(self.fitted(skip, x), self.up(x))


def _centre(skip: Tensor, size: tuple[int, ...]) -> Tensor:
    """The centre of the skip that :class:`CropConcat` takes, where it lies."""
    for dim, length in enumerate(size, start=2):
        if skip.shape[dim] != length:
            skip = skip.narrow(dim, (skip.shape[dim] - length) // 2, length)
    return skip


def level_widths(base_channels: int, depth: int) -> list[int]:
    """Channels of the ``depth + 1`` levels: each has twice as many as the one above."""
    return [base_channels * 2**level for level in range(depth + 1)]


def contract(
    levels: nn.ModuleList, bottom: ConvBlock, ups: nn.ModuleList, x: Tensor, fusion: Fusion = PLAIN
) -> tuple[list[Tensor | SkipBuffer], Tensor]:
    """Run the :class:`Down` levels; return their skips, from the finest on, and the last pooled map.

    ``bottom`` and ``ups``, from the coarsest to the finest, are what follows; they determine how large each skip needs to
    be, and how many channels will be written behind it.
    """
    downs, after = [level for level in levels if isinstance(level, Down)], [up for up in ups if isinstance(up, Up)]
    sizes: list[tuple[int, ...] | None] = [None] * len(downs)
    if fusion.contracting:
        sizes = [*_skip_sizes(downs, bottom, after, tuple(x.shape[2:]))]
    skips: list[Tensor | SkipBuffer] = []
    for down, up, size in zip(downs, reversed(after), sizes, strict=True):
        # in training the joined map is stored anyway; in inference half of it would wait for its other half
        apart = not torch.is_grad_enabled() and up.block.reads_apart(x, fusion)
        skip, x = down(x, fusion, size, 0 if apart else up.room(fusion, down))
        skips.append(skip)
    return skips, x


def _skip_sizes(downs: list[Down], bottom: ConvBlock, ups: list[Up], size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The size of the concatenated map of each level, from the finest on, for an image of ``size``."""
    for down in downs:
        size = tuple((length - down.block.lost) // 2 for length in size)
    size = tuple(length - bottom.lost for length in size)
    sizes: list[tuple[int, ...]] = []
    for up in ups:
        size = tuple(2 * length for length in size)
        sizes.append(size)
        size = tuple(length - up.block.lost for length in size)
    return sizes[::-1]


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
