"""What all segmentation networks of the package share: sizes, checks of the input, a configuration to rebuild them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch.nn.functional as F
from torch import Tensor, fx, nn

from unet_fast.checks import FLOATING, check_dtype, check_rank, check_tensor
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.fusion import Fused, Fusion, check_fused, fusion_for, untouched
from unet_fast.models.geometry import Geometry
from unet_fast.models.heads import HeadOutputs
from unet_fast.models.replay import replayed
from unet_fast.ops import head_cross_entropy, weighted_cross_entropy
from unet_fast.ops._tensors import autocasts


class SegmentationModel(nn.Module):
    """Base of the networks: ``forward`` maps images (N, in_channels, H, W) to logits (N, num_classes, h, w).

    A network with several heads returns :class:`~unet_fast.models.heads.HeadOutputs` in training mode, and the logits
    alone in eval mode.

    A subclass sets ``name`` (its registered name), passes its geometry and options here, and computes its output in
    ``_computed``, which calls :meth:`check_input` first.
    """

    name: ClassVar[str]

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        geometry: Geometry,
        options: dict[str, Any],
        fused: Fused = False,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.geometry = geometry
        self._options = dict(options)

    @property
    def fused(self) -> Fused:
        """Whether the junctions run as fused operators (True, False or "auto"); can be changed at any time."""
        return self._fused

    @fused.setter
    def fused(self, value: Fused) -> None:
        self._fused = check_fused(value)

    def fusion(self, x: Tensor) -> Fusion:
        """What is fused for an input like ``x``."""
        return fusion_for(self._fused, x)

    @property
    def config(self) -> dict[str, Any]:
        """Name and arguments as plain JSON values, from which ``models.create(**model.config)`` builds the same network."""
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
        """Why predicting in tiles cannot give exactly the result of the whole image; ``None`` if it does.

        A clause without a subject, for a message: what the network computes from its whole input, of which a tile is only a
        part.
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

    def forward(self, x: Tensor) -> Tensor | HeadOutputs:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, h, w), or all outputs in training mode."""
        return replayed(self, self._computed, x)

    def _computed(self, x: Tensor) -> Tensor | HeadOutputs:
        raise NotImplementedError

    def check_input(self, x: Tensor) -> None:
        """Raise one clear error unless ``x`` is a floating (N, in_channels, H, W) tensor of a legal size.

        Reads metadata only: no synchronisation, and nothing left in a compiled graph.
        """
        if isinstance(x, fx.Proxy):  # torch.fx follows the layers; sizes are checked nowhere then
            return
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
        if x.dtype != weight.dtype and not autocasts(x.device.type):
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


class SingleHeadModel(SegmentationModel):
    """A network that ends in one 1x1 convolution, ``head``; a subclass computes what it reads in :meth:`features`.

    ``downsample``: how many times larger the logits are than what the head reads, along each axis.
    """

    head: nn.Conv2d
    downsample: int = 1
    if TYPE_CHECKING:  # nn.Module's own __call__ returns Any

        def __call__(self, x: Tensor, target: Tensor | None = None, weight: Tensor | None = None) -> Tensor: ...

    def features(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> what the head reads, (N, C, h, w)."""
        raise NotImplementedError

    def forward(self, x: Tensor, target: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H - 2 * margin, W - 2 * margin).

        With a ``target``, the loss instead: ``net(images, target, weight)`` is ``net.loss(images, target, weight)``, in the
        form that DistributedDataParallel and FSDP2 synchronise, which act on calls of the network.
        """
        if target is not None and not isinstance(target, fx.Proxy):
            return self.loss(x, target, weight)
        return replayed(self, self._computed, x)

    def _computed(self, x: Tensor) -> Tensor:
        return self._logits(self.features(x))

    def _logits(self, features: Tensor) -> Tensor:
        logits = self.head(features)
        if self.downsample == 1:
            return logits
        return F.interpolate(logits, scale_factor=float(self.downsample), mode="bilinear", align_corners=False)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> Tensor:
        """The weighted softmax cross-entropy of the network's logits, for training; they are not stored when fused.

        Args:
            images: (N, in_channels, H, W), as for ``forward``.
            target: (N, h, w) class map of the output's size; int64, int32 or uint8.
            weight: (N, h, w) floating, or None for 1; gets no gradient.
            ignore_index: pixels with this target count for nothing.
            reduction: "mean" (over counted pixels), "weight_mean" or "sum".

        Returns:
            A scalar, float32 (float64 for float64 weights). Call it outside of ``torch.autocast`` or inside, the loss is
            computed in float32. Under DistributedDataParallel or FSDP2 call the wrapped network itself,
            ``ddp(images, target, weight)``: they synchronise gradients (and gather parameters) around its calls, so that
            ``ddp.module.loss(...)`` would train every process on its own.

        Raises:
            InputError: a network of one class, whose output is read through a sigmoid; what
                :func:`~unet_fast.ops.weighted_cross_entropy` refuses.

        Equivalent to::

            uf.ops.weighted_cross_entropy(net(images), target, weight)
        """
        if self.num_classes < 2:
            raise InputError(
                "this network has one output channel, read through a sigmoid; a softmax over it would be meaningless; "
                "give the network num_classes=2 or use unet_fast.nn.BCEWithLogitsLoss"
            )
        features = self.features(images)
        options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
        fused = self.fusion(images).head and self.downsample == 1 and untouched(self.head, nn.Conv2d)
        if fused and reduction != "none":
            return head_cross_entropy(features, self.head.weight, self.head.bias, target, weight, **options)
        return weighted_cross_entropy(self._logits(features), target, weight, **options)
