"""UNet 3+: every decoder level reads all scales at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unet_fast.models import reach
from unet_fast.models.arguments import check_counts, check_flag
from unet_fast.models.base import SegmentationModel
from unet_fast.models.blocks import CONVOLUTIONS_PER_BLOCK, ConvBlock, init_he, level_widths, run_and_pool
from unet_fast.models.fusion import Fused, Fusion
from unet_fast.models.geometry import Geometry
from unet_fast.models.heads import HeadOutputs, gated_logits
from unet_fast.models.registry import register

_GATE_DROPOUT = 0.5


@register("unet3+")
class UNet3Plus(SegmentationModel):
    """UNet 3+ (Huang et al., 2020): full-scale skip connections and full-scale deep supervision.

    The encoder is that of a U-Net with zero-padded Conv-BN-ReLU twice a level (64 to 1024). Each decoder level takes
    one branch from every scale - finer encoder maps by max-pooling, the encoder map of its own level, coarser decoder
    maps and the lowest level by bilinear up-sampling -, each through 3x3-BN-ReLU to ``base_channels``, joins them (320)
    and fuses them by another 3x3-BN-ReLU. Heads are 3x3 convolutions. 26,970,625 parameters with 1 input, one class
    and one head; that count, the source's 26.97 M, has biases in the convolutions before a batch normalisation too,
    which cancels them (26,964,097 without).

    Images (N, in_channels, H, W), sizes multiples of ``2**depth`` (at which the ceil mode of the source's max-pooling
    makes no difference) -> logits (N, num_classes, H, W). In training mode, with deep supervision or classification,
    :class:`~unet_fast.models.heads.HeadOutputs`:

    - ``auxiliary``: with deep supervision, the logits of the other ``depth`` scales (the last is the lowest level),
      up-sampled to (N, num_classes, H, W), bilinear;
    - ``class_logits``, ``gates``: (N, 2), with classification.

    The classification-guided module decides from the lowest level whether the image shows any foreground: dropout 0.5,
    1x1 convolution to 2 channels, global maximum, sigmoid. In training mode its logits are returned for a loss of their
    own (channel 0: none, channel 1: some) and gate nothing, so it learns, which an argmax would prevent. In eval mode
    the foreground probabilities are multiplied by ``gates[:, 1]``, expressed as logits again. The decision concerns the
    whole input, so each tile of an image makes its own, and overlap-tile warns about that.

    Args:
        in_channels: channels of the images.
        num_classes: channels of the logits; 1 is read through a sigmoid.
        base_channels: channels of the first level and of each branch; each level below has twice as many.
        depth: number of halvings.
        deep_supervision: whether every decoder scale has a head, or the finest one only.
        classification: whether to build the classification-guided module.
        fused: run convolutions with their ReLU, and ReLU and pooling of the encoder, as one operator: True, False, or
            "auto" for where that is faster on the device of the images. Parameters and results stay the same.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size, or in training mode a
            batch that leaves batch normalisation a single value. ``InputTypeError`` for a wrong type or dtype.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_channels: int = 64,
        depth: int = 4,
        deep_supervision: bool = True,
        classification: bool = False,
        fused: Fused = "auto",
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        check_flag("deep_supervision", deep_supervision)
        check_flag("classification", classification)
        step = 2**depth
        geometry = Geometry(step, 0, step, reach.radius(step, lambda span: _needed(span, depth)), zero_padded=True)
        options = {
            "base_channels": base_channels,
            "depth": depth,
            "deep_supervision": deep_supervision,
            "classification": classification,
        }
        super().__init__(in_channels, num_classes, geometry, options, fused)
        self.depth = depth

        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        joined = base_channels * (depth + 1)
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(_block(inputs[i], widths[i], CONVOLUTIONS_PER_BLOCK) for i in range(depth + 1))
        # decoder[i] reads encoder levels 0 ... i, decoder levels i + 1 ... depth - 1, and the lowest level
        self.decoder = nn.ModuleList(
            _FullScale([*widths[: i + 1], *[joined] * (depth - 1 - i), widths[depth]], base_channels)
            for i in range(depth)
        )
        self.head = nn.Conv2d(joined, num_classes, 3, padding=1)
        others = [*[joined] * (depth - 1), widths[depth]] if deep_supervision else []
        self.auxiliary = nn.ModuleList(nn.Conv2d(width, num_classes, 3, padding=1) for width in others)
        self.classify: nn.Module | None = None
        if classification:
            self.classify = nn.Sequential(
                nn.Dropout(_GATE_DROPOUT), nn.Conv2d(widths[depth], 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()
            )
        init_he(self)

    @property
    def tile_dependence(self) -> str | None:
        """See the base class."""
        if self.classify is not None:
            return "decides from its whole input whether there is any foreground"
        return super().tile_dependence

    def _computed(self, x: Tensor) -> Tensor | HeadOutputs:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W), or all outputs in training mode."""
        self.check_input(x)
        self.check_batch_statistics(x, self.depth)
        size = x.shape[2:]
        fusion = self.fusion(x)
        # finer[i]: the encoder maps of levels 0 ... i, all pooled to level i; each pooling goes on from the one above
        finer: list[list[Tensor]] = []
        pooled: list[Tensor] = []
        for block in self.encoder[:-1]:
            own, below = run_and_pool(block, self.pool, x, fusion)
            assert isinstance(own, Tensor)
            finer.append([*pooled, own])
            pooled, x = [*(self.pool(y) for y in pooled), below], below
        x = self.encoder[-1](x, fusion)
        maps = {self.depth: x}
        for level in reversed(range(self.depth)):
            coarser = [_upsampled(maps[k], 2 ** (k - level)) for k in range(level + 1, self.depth + 1)]
            maps[level] = self.decoder[level]([*finer[level], *coarser], fusion)
        logits = self.head(maps[0])
        class_logits = None if self.classify is None else self.classify(x)
        if not self.training:
            return logits if class_logits is None else gated_logits(logits, class_logits[:, 1])
        if class_logits is None and not len(self.auxiliary):
            return logits
        auxiliary = tuple(
            F.interpolate(head(maps[level]), size=size, mode="bilinear", align_corners=False)
            for level, head in enumerate(self.auxiliary, start=1)
        )
        return HeadOutputs(logits, auxiliary, class_logits, None if class_logits is None else class_logits.sigmoid())


class _FullScale(nn.Module):
    """A decoder level: maps of one size, (N, widths[k], h, w) each -> (N, branch * len(widths), h, w)."""

    def __init__(self, widths: list[int], branch: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_block(width, branch, 1) for width in widths)
        joined = branch * len(widths)
        self.fuse = _block(joined, joined, 1)

    def forward(self, maps: list[Tensor], fusion: Fusion) -> Tensor:
        """One map of every scale, all resampled to this level."""
        read = [branch(x, fusion) for branch, x in zip(self.branches, maps, strict=True)]
        return self.fuse(read if self.fuse.reads_apart(read[0], fusion) else torch.cat(read, 1), fusion)


def _block(in_channels: int, out_channels: int, convolutions: int) -> ConvBlock:
    """Zero-padded 3x3-BN-ReLU, ``convolutions`` times."""
    return ConvBlock(in_channels, out_channels, "same", "batch", convolutions, bias=True)


def _upsampled(x: Tensor, factor: int) -> Tensor:
    """``x`` enlarged ``factor`` times, bilinear with half-pixel centres."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _needed(span: reach.Span, depth: int) -> reach.Span:
    """The input that a span of the output needs, over all branches of all decoder levels."""
    # what every level's decoder map is asked for; the head is a 3x3 convolution as well
    asked = {0: reach.convolutions(span, 1)}
    encoder: dict[int, list[reach.Span]] = {level: [] for level in range(depth + 1)}
    for level in range(depth):
        branch = reach.convolutions(asked[level], 2)
        for k in range(level + 1):
            encoder[k].append(reach.pooling(branch, 2 ** (level - k)))
        for k in range(level + 1, depth + 1):
            wanted = reach.bilinear(branch, 2 ** (k - level))
            asked[k] = reach.hull(wanted, asked.get(k, wanted))
    encoder[depth].append(asked[depth])
    for level in range(depth, 0, -1):
        below = reach.convolutions(reach.hull(*encoder[level]), CONVOLUTIONS_PER_BLOCK)
        encoder[level - 1].append(reach.pooling(below))
    return reach.convolutions(reach.hull(*encoder[0]), CONVOLUTIONS_PER_BLOCK)
