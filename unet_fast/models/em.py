"""The U-Net of a re-implementation for electron microscopy: 512 x 512 in, mirrored to 700 x 700, 512 x 512 out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.checks import check_choice
from unet_fast.models import reach
from unet_fast.models.arguments import check_counts
from unet_fast.models.base import SegmentationModel
from unet_fast.models.blocks import PADDINGS, ConvBlock, Down, Up, contract, init_he, level_widths
from unet_fast.models.geometry import Geometry, unet_geometry, unet_reach
from unet_fast.models.registry import register

_EXTRA_CONVOLUTIONS = 2


@register("unet-em")
class UNetEM(SegmentationModel):
    """A U-Net with zero-padded convolutions, two more 3x3 convolutions before the last layer, and one sigmoid channel.

    Images (N, in_channels, H, W) -> logits (N, num_classes, H - 188, W - 188) at depth 4: 700 -> 512, 16k + 12 -> 16k
    - 176.

    How the sizes fit: an image of 512 is mirrored to 700 by whoever calls the network (training tiles and
    :class:`~unet_fast.predict.OverlapTile` do so), a margin of 94 pixels on each side. 700 is not divisible by the
    2**4 of the pooling, so the zero padding begins 2 pixels early: 700 -> 704, on which every level is even and the
    skips fit without a crop. Of the 704 pixels that come out, the central 512 are kept. The source states the
    zero-padded convolutions and the sizes; the way between them is ours. The receptive field reaches 109 pixels, 15
    beyond the margin, so zeros have a faint influence on the outermost pixels; overlap-tile computes those with more
    context and cuts them off. With ``padding="valid"`` the same sizes come out of the arithmetic alone, without zeros:
    700 -> 516 by the U-Net of the paper, -> 512 by the two more convolutions.

    Args:
        in_channels: channels of the images.
        num_classes: channels of the logits; 1 is read through a sigmoid.
        base_channels: channels of the first level; each level below has twice as many.
        depth: number of halvings.
        padding: "same" (zero padding, the source's) or "valid"; the parameters, and the legal sizes but for the
            smallest, are the same.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size. ``InputTypeError``
            for a wrong type or dtype.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_channels: int = 64,
        depth: int = 4,
        padding: str = "same",
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        check_choice("padding", padding, PADDINGS)
        geometry = _geometry(depth, padding)
        options = {"base_channels": base_channels, "depth": depth, "padding": padding}
        super().__init__(in_channels, num_classes, geometry, options)
        # zero rows and columns on each side that make every level even
        self._early = -2 * geometry.margin % geometry.step // 2 if padding == "same" else 0
        self._cut = geometry.margin + self._early if padding == "same" else 0

        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(Down(inputs[level], widths[level], padding) for level in range(depth))
        self.bottom = ConvBlock(widths[depth - 1], widths[depth], padding)
        self.up = nn.ModuleList(
            Up(widths[level + 1], widths[level], widths[level], padding) for level in reversed(range(depth))
        )
        self.extra = ConvBlock(base_channels, base_channels, padding, convolutions=_EXTRA_CONVOLUTIONS)
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H - 2 * margin, W - 2 * margin)."""
        self.check_input(x)
        if self._early:
            x = F.pad(x, (self._early,) * 4)
        skips, x = contract(self.down, x)
        x = self.bottom(x)
        for up in self.up:
            x = up(x, skips.pop())
        x = self.extra(x)
        if self._cut:
            x = x[:, :, self._cut : -self._cut, self._cut : -self._cut]
        return self.head(x)


def _geometry(depth: int, padding: str) -> Geometry:
    """The sizes of the valid network, which the zero-padded one keeps by its crop."""
    valid = unet_geometry(depth, "valid")
    step, margin = valid.step, valid.margin + _EXTRA_CONVOLUTIONS
    radius = reach.radius(step, lambda span: unet_reach(reach.convolutions(span, _EXTRA_CONVOLUTIONS), depth))
    smallest = valid.covering_output(2 * _EXTRA_CONVOLUTIONS + 1) - 2 * _EXTRA_CONVOLUTIONS
    # both put out multiples of a step; without zeros the lowest level bounds them, with zeros nothing does
    return Geometry(step, margin, step if padding == "same" else smallest, radius, zero_padded=padding == "same")
