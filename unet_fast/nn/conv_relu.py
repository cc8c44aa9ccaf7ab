"""A convolution with its ReLU as one layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unet_fast.errors import InputError
from unet_fast.ops import conv_bias_relu


class ConvReLU(nn.Conv2d):
    """``nn.Conv2d`` followed by ``nn.ReLU``, in one operator: parameters and ``state_dict`` are those of ``nn.Conv2d``.

    ``forward(x)``: (N, C, H, W) -> (N, K, h, w); see :func:`unet_fast.ops.conv_bias_relu` for dtypes and errors.
    Arguments as for ``nn.Conv2d``, limited to stride 1, dilation 1, one group and zero padding equal on all sides;
    others raise ``InputError``.

    Equivalent to::

        nn.Sequential(nn.Conv2d(...), nn.ReLU())
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, **options: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, **options)
        if not fits(self):
            raise InputError(
                f"a fused convolution has stride 1, dilation 1, one group and equal zero padding; got stride {self.stride}, "
                f"dilation {self.dilation}, groups {self.groups}, padding {self.padding} ({self.padding_mode})"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(conv(x))``."""
        return conv_bias_relu(x, self.weight, self.bias, padding=int(self.padding[0]))


def fits(layer: nn.Conv2d) -> bool:
    """Whether :func:`unet_fast.ops.conv_bias_relu` computes what this layer and a ReLU behind it compute."""
    return (
        layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.padding[0] == layer.padding[1]
    )
