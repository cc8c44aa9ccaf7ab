"""Up-sampling and skip connection as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast import checks
from unet_fast.ops import upsample_concat
from unet_fast.ops.upsample_concat import MODES, ORDERS, check_padding


class UpsampleConcat(nn.Module):
    """Up-sample a map by 2 and join it with a skip connection along the channels.

    ``forward(skip, x)``: (N, C1, H, W) and (N, C2, h, w) -> (N, C1 + C2, 2 h, 2 w), or (N, C1 + C2, H, W) with a padding; see
    :func:`unet_fast.ops.upsample_concat` for the arguments, layouts, dtypes and errors. No parameters.

    Equivalent to, for a skip of the same size::

        torch.cat([skip, F.interpolate(x, scale_factor=2, mode=mode)], dim=1)
    """

    def __init__(
        self,
        mode: str = "nearest",
        *,
        align_corners: bool = False,
        order: str = "skip_first",
        padding: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_choice("mode", mode, MODES)
        checks.check_choice("order", order, ORDERS)
        check_padding(padding)
        self.mode, self.align_corners, self.order, self.padding = mode, align_corners, order, padding

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Return the joined map."""
        return upsample_concat(
            skip, x, mode=self.mode, align_corners=self.align_corners, order=self.order, padding=self.padding
        )

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"mode={self.mode!r}, align_corners={self.align_corners}, order={self.order!r}, padding={self.padding!r}"
