"""The U-Net of 2015."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.checks import check_choice
from unet_fast.errors import InputError
from unet_fast.models.arguments import check_counts, check_norm, check_probability
from unet_fast.models.blocks import (
    CONVOLUTIONS_PER_BLOCK,
    PADDINGS,
    ConvBlock,
    Down,
    Up,
    init_he,
    level_widths,
)
from unet_fast.models.fusion import Fused
from unet_fast.models.geometry import unet_geometry
from unet_fast.models.registry import register
from unet_fast.models.u_shape import UShape

DOWNSAMPLES = (1, 2, 4, 8)


@register("unet")
class UNet(UShape):
    """Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015.

    Images (N, in_channels, H, W) -> logits (N, num_classes, h, w), both floating; the dtype of the weights, or
    autocast. By default the network of the paper: 64-128-256-512-1024 channels, valid 3x3 convolutions with ReLU, 2x2
    max-pooling, 2x2 stride-2 transposed convolutions, centre-cropped skips joined as [skip, up], a 1x1 convolution at
    the end; 31,030,658 parameters; 16k + 60 pixels in, 16k - 124 out (572 -> 388). Weights are drawn from N(0, 2 / N),
    N = incoming connections of one neuron, and biases are 0.

    Args:
        in_channels: channels of the images.
        num_classes: channels of the logits (1 for a sigmoid output).
        base_channels: channels of the first level; each level below has twice as many.
        depth: number of halvings.
        padding: "valid" (the output is ``margin`` pixels smaller on each side) or "same" (zero padding; sizes are
            multiples of ``2**depth``).
        norm: ``None``, "batch", "instance" or "group", between each 3x3 convolution and its ReLU.
        dropout: probability of dropping an element of the lowest level's output, the end of the contracting path;
            0 to less than 1.
        fused: run bias, ReLU, pooling, crop and concatenation inside fused operators: True, False, or "auto" for those
            that are faster on the device of the images. Parameters and results stay the same.
        downsample: 1, 2, 4 or 8: the network works on the means of squares of this side, and its logits are interpolated
            bilinearly; for objects that are large in pixels. Above 1 for "same" padding only.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size (the nearest legal
            ones are named). ``InputTypeError`` for a wrong type or dtype.

    Example:
        >>> net = UNet(in_channels=1, num_classes=2)
        >>> net.output_size(572), net.input_size(388), net.margin
        (388, 572, 92)
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        depth: int = 4,
        padding: str = "valid",
        norm: str | None = None,
        dropout: float = 0.0,
        fused: Fused = "auto",
        downsample: int = 1,
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        check_choice("padding", padding, PADDINGS)
        check_norm(norm)
        check_probability("dropout", dropout)
        if downsample not in DOWNSAMPLES:
            raise InputError(f"downsample is {downsample!r}, expected one of {', '.join(map(str, DOWNSAMPLES))}")
        if downsample > 1 and padding != "same":
            raise InputError(f"downsample is {downsample}, which needs padding='same', but padding is {padding!r}")
        # the statistics of an instance need more than one pixel, also at the lowest level
        geometry = unet_geometry(
            depth,
            padding,
            convolutions=CONVOLUTIONS_PER_BLOCK,
            smallest_bottom=2 if norm == "instance" else 1,
            downsample=downsample,
        )
        options = {
            "base_channels": base_channels,
            "depth": depth,
            "padding": padding,
            "norm": norm,
            "dropout": float(dropout),
            "downsample": downsample,
        }
        super().__init__(in_channels, num_classes, geometry, options, fused)

        self.downsample = downsample
        self._halvings, self._batch_norm = depth + downsample.bit_length() - 1, norm == "batch" and padding == "same"
        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(Down(inputs[level], widths[level], padding, norm) for level in range(depth))
        self.bottom = ConvBlock(widths[depth - 1], widths[depth], padding, norm)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(
            Up(widths[level + 1], widths[level], widths[level], padding, norm) for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        init_he(self)

    def enter(self, x: Tensor) -> Tensor:
        """See the base class; the means of squares of ``downsample`` pixels a side."""
        if self._batch_norm:
            self.check_batch_statistics(x, self._halvings)
        return F.avg_pool2d(x, self.downsample) if self.downsample > 1 else x

    def turn(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self.dropout(x)
