"""The U-Net of a re-implementation for electron microscopy: 512 x 512 in, mirrored to 700 x 700, 512 x 512 out."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.models import reach
from unet_fast.models.arguments import check_counts
from unet_fast.models.blocks import ConvBlock, Down, Up, init_he, level_widths
from unet_fast.models.fusion import Fused, Fusion
from unet_fast.models.geometry import Geometry, unet_geometry, unet_reach
from unet_fast.models.registry import register
from unet_fast.models.u_shape import UShape

_EXTRA_CONVOLUTIONS = 2


@register("unet-em")
class UNetEM(UShape):
    """A U-Net with zero-padded convolutions, two more 3x3 convolutions before the last layer, and one sigmoid channel.

    Images (N, in_channels, H, W) -> logits (N, num_classes, H - 188, W - 188) at depth 4: 700 -> 512, 16k + 188 -> 16k.

    The source mirrors 512 x 512 to 700 x 700, pads its convolutions with zeros and returns 512 x 512; it does not say
    how these sizes fit together. Here the image has a mirrored margin of 94 pixels on each side, which training tiles
    and :class:`~unet_fast.predict.OverlapTile` add and the output loses. With 2 more zeros on each side, 700 becomes
    704, which can be halved four times, and the central 512 of the 704 output pixels are kept. None of them depends on
    a zero, because the valid convolutions of the U-Net take off 92 pixels and the two additional ones 2, which makes
    94. So the layers below use no padding at all, which gives the same values and gradients for less work.

    Args:
        in_channels, base_channels, depth, fused: as for :class:`~unet_fast.models.UNet`.
        num_classes: channels of the logits; 1 is read through a sigmoid.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size. ``InputTypeError``
            for a wrong type or dtype.

    Equivalent to, with every convolution of ``net`` padded by one zero on each side::

        padded = net(torch.nn.functional.pad(images, (2, 2, 2, 2)))
        padded[:, :, 96:-96, 96:-96]
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 1, base_channels: int = 64, depth: int = 4, fused: Fused = "auto"
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        options = {"base_channels": base_channels, "depth": depth}
        super().__init__(in_channels, num_classes, _geometry(depth), options, fused)
        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(Down(inputs[level], widths[level]) for level in range(depth))
        self.bottom = ConvBlock(widths[depth - 1], widths[depth])
        self.up = nn.ModuleList(Up(widths[level + 1], widths[level], widths[level]) for level in reversed(range(depth)))
        self.extra = ConvBlock(base_channels, base_channels, convolutions=_EXTRA_CONVOLUTIONS)
        self.head = nn.Conv2d(base_channels, num_classes, 1)
        init_he(self)

    def finish(self, x: Tensor, fusion: Fusion) -> Tensor:
        """See the base class."""
        return self.extra(x, fusion)


def _geometry(depth: int) -> Geometry:
    """The sizes of the valid U-Net, whose output two more convolutions make smaller."""
    valid = unet_geometry(depth, "valid")
    lost = 2 * _EXTRA_CONVOLUTIONS
    radius = reach.radius(valid.step, lambda span: unet_reach(reach.convolutions(span, _EXTRA_CONVOLUTIONS), depth))
    return Geometry(valid.step, valid.margin + _EXTRA_CONVOLUTIONS, valid.covering_output(lost + 1) - lost, radius)
