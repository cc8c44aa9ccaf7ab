"""The skip connection as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast import checks
from unet_fast.ops import crop_concat
from unet_fast.ops.upsample_concat import ORDERS, check_padding


class CropConcat(nn.Module):
    """Centre-crop a skip connection to the size of the up-sampled map and join both along the channels.

    ``forward(skip, up)``: (N, C1, *S) and (N, C2, *s) with S >= s, 2-D or 3-D -> (N, C1 + C2, *s), in the order
    [skip, up] unless ``order`` is "up_first"; with a ``padding`` ("zeros", "replicate") -> (N, C1 + C2, *S). See
    :func:`unet_fast.ops.crop_concat` for layouts, dtypes and errors. No parameters.

    Equivalent to::

        y, x = (skip.shape[2] - up.shape[2]) // 2, (skip.shape[3] - up.shape[3]) // 2
        torch.cat([skip[:, :, y : y + up.shape[2], x : x + up.shape[3]], up], dim=1)
    """

    def __init__(self, *, order: str = "skip_first", padding: str | None = None) -> None:
        super().__init__()
        checks.check_choice("order", order, ORDERS)
        check_padding(padding)
        self.order, self.padding = order, padding

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        """Return the crop of ``skip`` and ``up``, joined."""
        return crop_concat(skip, up, order=self.order, padding=self.padding)

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"order={self.order!r}, padding={self.padding!r}"
