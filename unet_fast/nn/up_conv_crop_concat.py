"""Up-sampling and skip connection as one layer."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.ops import up_conv_crop_concat


class UpConvCropConcat(nn.ConvTranspose2d):
    """2x2, stride-2 transposed convolution, written straight behind the centre-cropped skip into the concatenated map.

    ``forward(x, skip)``: (N, C_in, h, w) and (N, C, H, W) with H >= 2h, W >= 2w -> (N, C + C_out, 2h, 2w), in the order
    [skip, up]; see :func:`unet_fast.ops.up_conv_crop_concat` for layouts, dtypes and errors. Parameters and
    ``state_dict`` are those of ``nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)``.

    Equivalent to::

        CropConcat()(skip, nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)(x))
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, bias=bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]  # the layer joins two maps
        """Return the crop of ``skip`` followed by the up-sampled ``x``."""
        return up_conv_crop_concat(x, self.weight, self.bias, skip)
