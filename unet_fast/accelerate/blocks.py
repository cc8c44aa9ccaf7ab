"""Blocks of known libraries whose forward cannot be read off, because it asks for the sizes of its inputs.

Known by module and name of their class, so that no library is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unet_fast.accelerate import layers
from unet_fast.accelerate.joined import Joined, pad
from unet_fast.accelerate.patch import Patch


class UpCat(Patch):
    """MONAI's block of the expanding path: up-sample, pad by repeating the edge, join behind the skip, convolve."""

    words = ("join of skip and padded map",)

    def fast(self, x: Tensor, x_e: Tensor | None) -> Any:
        """The up-sampled map behind the skip, or by itself where there is none."""
        block = self.module
        if not isinstance(x_e, Tensor):
            return block.convs(block.upsample(x))
        up = layers.run_late([block.upsample], x)
        if block.is_pad:
            short = [int(skip != own) for skip, own in zip(x_e.shape[2:], up.shape[2:], strict=True)]
            if any(short):
                amounts = [amount for one in reversed(short) for amount in (0, one)]
                up = pad(up, amounts, "replicate")
        return layers.run([block.convs], Joined([x_e, up]))

    def rows(self) -> list[Sequence[nn.Module]]:
        """The convolutions behind the join."""
        return [[self.module.convs]]


_KNOWN: dict[tuple[str, str], type[Patch]] = {("monai.networks.nets.basic_unet", "UpCat"): UpCat}


def known(module: nn.Module) -> type[Patch] | None:
    """The patch for a block of a known library."""
    kind = type(module)
    return _KNOWN.get((kind.__module__, kind.__qualname__))
