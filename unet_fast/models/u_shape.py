"""Networks that go down and up once, and end in one head."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.models.base import SingleHeadModel
from unet_fast.models.blocks import ConvBlock, contract
from unet_fast.models.fusion import Fusion


class UShape(SingleHeadModel):
    """A subclass makes ``down``, ``bottom`` and ``up``, from the coarsest level to the finest, and says what comes between."""

    down: nn.ModuleList
    bottom: ConvBlock
    up: nn.ModuleList

    def features(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, base_channels, H - 2 * margin, W - 2 * margin)."""
        self.check_input(x)
        x = self.enter(x)
        fusion = self.fusion(x)
        skips, x = contract(self.down, self.bottom, self.up, x, fusion)
        x = self.turn(self.bottom(x, fusion))
        for up in self.up:
            x = up(x, skips.pop(), fusion)
        return self.finish(x, fusion)

    def enter(self, x: Tensor) -> Tensor:
        """What the finest level gets of images whose size is legal."""
        return x

    def turn(self, x: Tensor) -> Tensor:
        """What becomes of the lowest level's output before it goes up."""
        return x

    def finish(self, x: Tensor, fusion: Fusion) -> Tensor:
        """What becomes of the finest level's output before the head reads it."""
        return x
