"""The U-Net as its authors released it, which differs from their paper."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.models.arguments import check_counts, check_probability
from unet_fast.models.blocks import ConvBlock, Down, SkipBuffer, Up, init_he, level_widths
from unet_fast.models.fusion import Fused, Fusion
from unet_fast.models.geometry import unet_geometry
from unet_fast.models.layers import JoinConv2d
from unet_fast.models.registry import register
from unet_fast.models.u_shape import UShape


@register("unet-2015-release")
class UNet2015Release(UShape):
    """The network that Ronneberger, Fischer and Brox released with "U-Net", 2015.

    Sizes and widths are those of :class:`~unet_fast.models.UNet` (572 -> 388), with these differences: a ReLU after
    every up-convolution; the last up-convolution keeps its channels (128) instead of halving them; dropout after the
    second ReLU of the two lowest levels (512 and 1024 channels), so that the skip of the 512 level carries the dropped
    tensor; channels joined as [up, skip]. 31,100,354 parameters for 1 input and 2 classes.

    Images (N, in_channels, H, W) -> logits (N, num_classes, H - 184, W - 184) at depth 4.

    Args:
        in_channels, base_channels, depth, fused: as for :class:`~unet_fast.models.UNet`.
        num_classes: channels of the logits.
        dropout: probability of dropping an element; 0 to less than 1.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size. ``InputTypeError``
            for a wrong type or dtype.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        depth: int = 4,
        dropout: float = 0.5,
        fused: Fused = "auto",
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        check_probability("dropout", dropout)
        options = {"base_channels": base_channels, "depth": depth, "dropout": float(dropout)}
        super().__init__(in_channels, num_classes, unet_geometry(depth, "valid"), options, fused)

        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(
            Down(inputs[level], widths[level], dropout=dropout if level == depth - 1 else 0.0) for level in range(depth)
        )
        self.bottom = ConvBlock(widths[depth - 1], widths[depth])
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(
            _ReleasedUp(widths[level + 1], widths[level], widths[level] if level else widths[1])
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        init_he(self)

    def turn(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self.dropout(x)


class _ReleasedUp(Up):
    """An :class:`Up` with a ReLU on the up-sampled map, and weights for the channel order [up, skip]."""

    def __init__(self, in_channels: int, width: int, up_channels: int) -> None:
        super().__init__(in_channels, width, width, up_channels=up_channels)
        self.block[0] = JoinConv2d(width + up_channels, width, skip_channels=width)

    def join(self, x: Tensor, skip: Tensor | SkipBuffer, fusion: Fusion) -> Tensor:
        """[skip, up-sampled and rectified ``x``] in one map."""
        if isinstance(skip, SkipBuffer):
            # a second ReLU changes nothing in the skip, nor in its gradient, which is 0 where the skip is
            return F.relu(super().join(x, skip, fusion), inplace=True)
        return self.concat(skip, F.relu(self.up(x), inplace=True))
