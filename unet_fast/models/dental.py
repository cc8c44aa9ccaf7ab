"""The U-Net for dental X-ray images, with auxiliary heads."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.models.arguments import check_counts
from unet_fast.models.base import SegmentationModel
from unet_fast.models.blocks import ConvBlock, Down, Up, contract, init_he, level_widths
from unet_fast.models.fusion import Fused
from unet_fast.models.geometry import unet_geometry
from unet_fast.models.heads import HeadOutputs
from unet_fast.models.registry import register

_UP_KERNEL = 4


@register("unet-dental")
class UNetDental(SegmentationModel):
    """A U-Net for seven classes, with 4x4 up-convolutions, zero padding and auxiliary softmax heads.

    Images (N, in_channels, H, W), sizes multiples of ``2**depth`` -> in eval mode logits (N, num_classes, H, W); in
    training mode :class:`~unet_fast.models.heads.HeadOutputs` whose ``auxiliary`` holds the logits of the other levels
    of the expanding path, (N, num_classes, H / 2**l, W / 2**l) for l = 1 ... depth - 1. The auxiliary heads cost
    nothing in eval mode.

    Known from the source: the 7 classes, the 4x4 kernels of the up-convolutions, zero padding where the U-Net mirrors,
    and softmax losses on the low-resolution levels of the expanding path. Its text was not available; the rest is a
    suggestion, not a fact: stride 2 and padding 1 of the up-convolutions (exact doubling), 1x1 auxiliary heads on every
    level but the finest, meant for targets reduced by nearest neighbour, and the widths of the U-Net (64 to 1024).

    Args:
        in_channels, base_channels, depth, fused: as for :class:`~unet_fast.models.UNet`.
        num_classes: channels of the logits.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size. ``InputTypeError``
            for a wrong type or dtype.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 7, base_channels: int = 64, depth: int = 4, fused: Fused = "auto"
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        geometry = unet_geometry(depth, "same", up_kernel=_UP_KERNEL)
        options = {"base_channels": base_channels, "depth": depth}
        super().__init__(in_channels, num_classes, geometry, options, fused)
        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(Down(inputs[level], widths[level], "same") for level in range(depth))
        self.bottom = ConvBlock(widths[depth - 1], widths[depth], "same")
        self.up = nn.ModuleList(
            Up(widths[level + 1], widths[level], widths[level], "same", up_kernel=_UP_KERNEL)
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        self.auxiliary = nn.ModuleList(nn.Conv2d(widths[level], num_classes, 1) for level in range(1, depth))
        init_he(self)

    def _computed(self, x: Tensor) -> Tensor | HeadOutputs:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W), with the auxiliary ones in training mode."""
        self.check_input(x)
        fusion = self.fusion(x)
        skips, x = contract(self.down, self.bottom, self.up, x, fusion)
        x = self.bottom(x, fusion)
        maps: list[Tensor] = []
        for up in self.up:
            x = up(x, skips.pop(), fusion)
            maps.append(x)
        logits = self.head(x)
        if not self.training:
            return logits
        coarser = reversed(maps[:-1])
        return HeadOutputs(logits, tuple(head(y) for head, y in zip(self.auxiliary, coarser, strict=True)))
