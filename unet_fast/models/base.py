"""What all segmentation networks of the package share: sizes, checks of the input, a configuration to rebuild them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from unet_fast.checks import FLOATING, check_dtype, check_rank, check_tensor
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.geometry import Geometry


class SegmentationModel(nn.Module):
    """Base of the networks: ``forward`` maps images (N, in_channels, H, W) to logits (N, num_classes, h, w).

    A network with several heads returns :class:`~unet_fast.models.heads.HeadOutputs` in training mode, and the logits
    alone in eval mode.

    A subclass sets ``name`` (its registered name), passes its geometry and options here, and calls
    :meth:`check_input` first in its ``forward``.
    """

    name: ClassVar[str]

    def __init__(self, in_channels: int, num_classes: int, geometry: Geometry, options: dict[str, Any]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.geometry = geometry
        self._options = dict(options)

    @property
    def config(self) -> dict[str, Any]:
        """Name and arguments as plain JSON values: ``models.create(**model.config)`` builds the same network."""
        return {
            "name": self.name,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            **self._options,
        }

    @property
    def margin(self) -> int:
        """Pixels that the output is smaller than the input, on each side."""
        return self.geometry.margin

    @property
    def tile_dependence(self) -> str | None:
        """Why tiles of an image cannot be exactly the whole image, as a clause without subject; ``None`` if they are.

        It says what the network takes from its whole input, whose part a tile is.
        """
        if any(isinstance(module, nn.InstanceNorm2d | nn.GroupNorm) for module in self.modules()):
            return "normalises by the statistics of its input"
        return None

    @overload
    def output_size(self, size: int) -> int: ...
    @overload
    def output_size(self, size: Sequence[int]) -> tuple[int, int]: ...
    def output_size(self, size: int | Sequence[int]) -> int | tuple[int, int]:
        """The output of an input of ``size``, int or (height, width); ``InputError`` names the nearest legal inputs."""
        return self.geometry.output_size(size)

    @overload
    def input_size(self, size: int) -> int: ...
    @overload
    def input_size(self, size: Sequence[int]) -> tuple[int, int]: ...
    def input_size(self, size: int | Sequence[int]) -> int | tuple[int, int]:
        """The input size that gives exactly an output of ``size``; ``InputError`` names the nearest legal outputs."""
        return self.geometry.input_size(size)

    def check_input(self, x: Tensor) -> None:
        """Raise one clear error unless ``x`` is a floating (N, in_channels, H, W) tensor of a legal size.

        Reads metadata only: no synchronisation, and nothing left in a compiled graph.
        """
        check_tensor("images", x)
        check_rank("images", x, (4,), "(N, C, H, W)")
        check_dtype("images", x, FLOATING)
        if x.shape[1] != self.in_channels:
            raise InputError(
                f"images have {x.shape[1]} channels, shape {tuple(x.shape)}; this network expects {self.in_channels}"
            )
        geometry = self.geometry
        if not geometry.accepts(x.shape[2]):
            raise InputError(geometry.refusal("input", "height", x.shape[2], geometry.smallest_input))
        if not geometry.accepts(x.shape[3]):
            raise InputError(geometry.refusal("input", "width", x.shape[3], geometry.smallest_input))
        weight = next(self.parameters())
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputTypeError(
                f"images have dtype {x.dtype} but the network's weights are {weight.dtype}; "
                "convert the images or use autocast"
            )

    def check_batch_statistics(self, x: Tensor, halvings: int) -> None:
        """Raise if batch normalisation in training mode would see one value a channel after ``halvings`` of ``x``."""
        if not self.training:
            return
        count, _, height, width = x.shape
        if count * (height >> halvings) * (width >> halvings) == 1:
            raise InputError(
                f"one image of {height} x {width} pixels leaves one pixel at the lowest level, which batch "
                "normalisation cannot train on; use a larger batch or larger images"
            )
