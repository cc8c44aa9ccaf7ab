"""U-Nets with a ResNet as encoder, which may start from ImageNet weights."""

from __future__ import annotations

import os
from typing import ClassVar

from torch import Tensor, nn

from unet_fast.models import reach
from unet_fast.models.arguments import check_counts
from unet_fast.models.base import SingleHeadModel
from unet_fast.models.blocks import CONVOLUTIONS_PER_BLOCK, Up, init_he
from unet_fast.models.fusion import Fused
from unet_fast.models.geometry import Geometry
from unet_fast.models.pretrained import load_encoder
from unet_fast.models.registry import register
from unet_fast.models.resnet import STAGE_STRIDES, BasicBlock, Bottleneck, ResNetEncoder

_HALVINGS = len(STAGE_STRIDES) + 1  # the stem, the max-pooling and three of the stages halve


class UNetResNet(SingleHeadModel):
    """A ResNet encoder and a U-Net decoder: 2x2 up-convolution, skip, Conv-BN-ReLU twice, on each of five levels.

    Images (N, in_channels, H, W), sizes multiples of 32 -> logits (N, num_classes, H, W). Decoder widths are 256, 128,
    64, 32 and 16; the skips are the encoder's maps at 1/16, 1/8, 1/4 and 1/2, and the image itself at full size.

    ``encoder`` has the names and shapes of torchvision's network less ``fc``, so
    ``net.encoder.load_state_dict(torchvision_state, strict=False)`` works as well as ``weights``. Pretrained weights
    expect images of about zero mean and unit deviation, which :func:`unet_fast.data.normalize` gives. The receptive
    field is several hundred pixels wide; overlap-tile therefore computes that much context, most of which matters little.

    Args:
        in_channels: channels of the images; other than 3, pretrained weights of the first convolution are summed over
            the colours and shared out.
        num_classes: channels of the logits; 1 is read through a sigmoid.
        base_channels: channels of the encoder's stem; 64 is torchvision's.
        weights: path of a local file with torchvision's weights (.safetensors, .pth); ``None`` draws them from N(0, 2
            / N). Nothing is downloaded. Not part of ``config``: the weights are in the ``state_dict``.
        fused: run convolutions, the decoder's up-convolutions, and the head within ``loss``, as fused operators:
            True, False, or "auto" for those that are faster on the device of the images. Parameters and results stay
            the same.

    Raises:
        InputError: an argument out of range, a weights file that is missing (with the address to get it from),
            unreadable or of another network; in ``forward`` a wrong rank, channel count or size, or in training mode
            a batch that leaves batch normalisation a single value. ``InputTypeError`` for a wrong type or dtype.
    """

    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    blocks: ClassVar[tuple[int, int, int, int]]
    weights_file: ClassVar[str]

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_channels: int = 64,
        weights: str | os.PathLike[str] | None = None,
        fused: Fused = "auto",
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels)
        encoder = ResNetEncoder(self.block, self.blocks, in_channels, base_channels)
        step = 2**_HALVINGS
        radius = reach.radius(step, lambda span: _needed(span, encoder))
        geometry = Geometry(step, 0, step, radius, zero_padded=True)
        super().__init__(in_channels, num_classes, geometry, {"base_channels": base_channels}, fused)
        self.encoder = encoder
        widths = [max(1, base_channels * 4 // 2**index) for index in range(_HALVINGS)]
        skips = [*encoder.channels[-2::-1], in_channels]
        inputs = [encoder.channels[-1], *widths]
        self.up = nn.ModuleList(Up(inputs[i], skips[i], widths[i], "same", "batch") for i in range(_HALVINGS))
        self.head = nn.Conv2d(widths[-1], num_classes, 1)
        init_he(self)
        if weights is not None:
            load_encoder(encoder, weights, f"https://download.pytorch.org/models/{self.weights_file}")

    def features(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> what the head reads, (N, C, H, W)."""
        self.check_input(x)
        self.check_batch_statistics(x, _HALVINGS)
        fusion = self.fusion(x)
        maps = self.encoder(x, fusion)
        skips, y = [x, *maps[:-1]], maps[-1]
        for up in self.up:
            y = up(y, skips.pop(), fusion)
        return y


@register("unet-resnet18")
class UNetResNet18(UNetResNet):
    __doc__ = UNetResNet.__doc__
    block, blocks, weights_file = BasicBlock, (2, 2, 2, 2), "resnet18-f37072fd.pth"


@register("unet-resnet34")
class UNetResNet34(UNetResNet):
    __doc__ = UNetResNet.__doc__
    block, blocks, weights_file = BasicBlock, (3, 4, 6, 3), "resnet34-b627a593.pth"


@register("unet-resnet50")
class UNetResNet50(UNetResNet):
    __doc__ = UNetResNet.__doc__
    block, blocks, weights_file = Bottleneck, (3, 4, 6, 3), "resnet50-0676ba61.pth"


def _needed(span: reach.Span, encoder: ResNetEncoder) -> reach.Span:
    """The input that a span of the output needs."""
    asked: list[reach.Span] = []  # of the image, then of the encoder's maps from the finest on
    for _ in range(_HALVINGS):
        span = reach.convolutions(span, CONVOLUTIONS_PER_BLOCK)
        asked.append(span)
        span = reach.transposed(span)
    return reach.hull(asked[0], encoder.needed([*asked[1:], span]))
