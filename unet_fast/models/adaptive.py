"""A U-Net with batch normalisation, resized skips and a depth that adapts to the image."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.models.arguments import check_counts
from unet_fast.models.base import SegmentationModel
from unet_fast.models.blocks import ConvBlock, SkipBuffer, Up, init_he, level_widths, run_and_pool
from unet_fast.models.fusion import Fused
from unet_fast.models.geometry import unet_geometry
from unet_fast.models.registry import register


@register("unet-bn")
class UNetBN(SegmentationModel):
    """A U-Net built from Conv-BN-ReLU twice a level, whose skips are resized and whose depth adapts to the image.

    Images (N, in_channels, H, W) of any size -> logits (N, num_classes, H, W). Zero-padded convolutions, 2x2
    max-pooling, 2x2 stride-2 transposed convolutions. An odd row or column is lost in a pooling; the skip is then
    resized (bilinear) to the up-sampled map rather than cropped, and the logits are resized to the image.

    Depth: as many levels are used as the image can be halved, at most ``depth`` and never more than
    log2(min(H, W)); the levels that are left out keep their weights. Multiples of ``2**depth`` use all levels and
    resize nothing; the tiles of :class:`~unet_fast.predict.OverlapTile` are such multiples, so the result does not
    depend on the tiling. An image that is given to the network directly and is smaller than ``2**depth``, or has an
    odd size at some level, uses other levels than its tiles would, so its result differs.

    Args:
        in_channels, base_channels, fused: as for :class:`~unet_fast.models.UNet`.
        num_classes: channels of the logits; 1 is read through a sigmoid.
        depth: the largest number of halvings.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank or channel count, an empty image, or in
            training mode a batch that leaves batch normalisation a single value. ``InputTypeError`` for a wrong type
            or dtype.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 1, base_channels: int = 64, depth: int = 4, fused: Fused = "auto"
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        geometry = dataclasses.replace(unet_geometry(depth, "same"), any_from=1)
        options = {"base_channels": base_channels, "depth": depth}
        super().__init__(in_channels, num_classes, geometry, options, fused)
        self.depth = depth
        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.levels = nn.ModuleList(
            ConvBlock(inputs[level], widths[level], "same", "batch") for level in range(depth + 1)
        )
        self.pool = nn.MaxPool2d(2)
        # from the finest to the coarsest, so that the levels in use are the first ones
        self.up = nn.ModuleList(_ResizedUp(widths[level + 1], widths[level]) for level in range(depth))
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        init_he(self)

    def used_depth(self, height: int, width: int) -> int:
        """The number of halvings for an image of this size: at most ``depth`` and log2(min(height, width)).

        A graph that is exported for any size holds all levels, and takes images from ``2**depth`` pixels on.
        """
        depth = self.depth
        if _stay_free(height, width):
            return depth
        while depth and (1 << depth) > min(height, width):
            depth -= 1
        return depth

    def _computed(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        self.check_input(x)
        size = x.shape[2:]
        depth = self.used_depth(*size)
        self.check_batch_statistics(x, depth)
        fusion = self.fusion(x)
        skips: list[Tensor | SkipBuffer] = []
        for level in range(depth):
            up = self.up[level]
            assert isinstance(up, Up)
            # a row that is lost in a pooling below is missing here on the way up
            lost = _stay_free(*size) or any(length % (1 << (depth - level)) for length in x.shape[2:])
            room = 0 if lost else up.room(fusion, self.levels[level])
            skip, x = run_and_pool(self.levels[level], self.pool, x, fusion, up_channels=room)
            skips.append(skip)
        x = self.levels[depth](x, fusion)
        for level in reversed(range(depth)):
            x = self.up[level](x, skips.pop(), fusion)
        return _resized(self.head(x), size)


class _ResizedUp(Up):
    """An :class:`Up` that resizes the skip to the up-sampled map."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(in_channels, width, width, "same", "batch")

    def fitted(self, skip: Tensor, x: Tensor) -> Tensor:
        """The skip, resized to the up-sampled ``x``."""
        return _resized(skip, tuple(2 * length for length in x.shape[2:]))


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``x`` at ``size``, bilinear; itself where it has that size, which bilinear interpolation leaves as it is."""
    if not _stay_free(*size) and tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _stay_free(*lengths: int) -> bool:
    """Whether these are sizes that an exported graph is to leave open, so that nothing may be decided by them."""
    return torch.compiler.is_exporting() and any(isinstance(length, torch.SymInt) for length in lengths)
