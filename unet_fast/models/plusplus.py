"""UNet++: nested U-Nets that share one encoder, supervised at every depth, and pruned when they are built."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unet_fast.checks import check_choice
from unet_fast.errors import InputError
from unet_fast.models.arguments import check_counts, check_flag, check_norm
from unet_fast.models.base import SegmentationModel
from unet_fast.models.blocks import ConvBlock, Up, init_he, level_widths, run_and_pool
from unet_fast.models.fusion import PLAIN, Fused, Fusion
from unet_fast.models.geometry import unet_geometry
from unet_fast.models.heads import HeadOutputs, mean_logits
from unet_fast.models.registry import register

MODES = ("accurate", "fast")


@register("unet++")
class UNetPlusPlus(SegmentationModel):
    """UNet++ (Zhou et al., 2018): node X(i, j) joins X(i, 0 ... j - 1) with the up-sampled X(i + 1, j - 1).

    X(i, 0) is the encoder, level i of ``depth + 1``; every node is two zero-padded 3x3 convolutions with ReLU; up is
    a 2x2 stride-2 transposed convolution. Widths 32-64-128-256-512; 9,041,601 parameters with one head and 1 input.

    Images (N, in_channels, H, W), sizes multiples of ``2**depth`` (``2**prune`` when pruned) -> logits (N,
    num_classes, H, W). With deep supervision a 1x1 head reads each of X(0, 1) ... X(0, depth), and training mode
    returns :class:`~unet_fast.models.heads.HeadOutputs`: ``logits`` of X(0, depth), ``auxiliary`` of X(0, depth - 1)
    ... X(0, 1), all (N, num_classes, H, W), meant for one loss each. Eval mode returns one map of logits: those of
    the mean probability of all heads ("accurate") or of X(0, depth) alone ("fast").

    Pruning to level L keeps the nodes with i + j <= L and only head L. :meth:`pruned` makes such a network out of a
    trained one; ``prune=L`` builds it, and :meth:`load_unpruned` fills it from the weights of a full network. What is
    pruned is neither allocated nor computed.

    The idea is under a pending patent of Arizona State University, and the authors' code is licensed for non-commercial
    use. This is an independent implementation, written from a description; if you use it commercially, have the patent
    checked.

    Args:
        in_channels, base_channels, fused: as for :class:`~unet_fast.models.UNet`.
        num_classes: channels of the logits; 1 is read through a sigmoid.
        depth: number of halvings of the full network.
        deep_supervision: whether every X(0, j), j >= 1, has a head, or the last one only.
        mode: what eval mode returns, "accurate" or "fast"; the same with one head.
        prune: level 1 ... depth to prune to; ``None`` for the full network.
        norm: ``None``, "batch", "instance" or "group", between each 3x3 convolution and its ReLU.

    Raises:
        InputError: an argument out of range; in ``forward`` a wrong rank, channel count or size. ``InputTypeError``
            for a wrong type or dtype.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        base_channels: int = 32,
        depth: int = 4,
        deep_supervision: bool = True,
        mode: str = "accurate",
        prune: int | None = None,
        norm: str | None = None,
        fused: Fused = "auto",
    ) -> None:
        check_counts(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels, depth=depth)
        check_flag("deep_supervision", deep_supervision)
        check_choice("mode", mode, MODES)
        check_norm(norm)
        if prune is not None:
            check_counts(prune=prune)
            if prune > depth:
                raise InputError(f"prune is {prune}, expected None or a level from 1 to the depth, {depth}")
        last = depth if prune is None else prune
        # the longest path through the nodes is that of a U-Net: a lateral step sees less than another level would. The
        # statistics of an instance need more than one pixel, also at the lowest level
        geometry = unet_geometry(last, "same", smallest_bottom=2 if norm == "instance" else 1)
        options = {
            "base_channels": base_channels,
            "depth": depth,
            "deep_supervision": deep_supervision,
            "mode": mode,
            "prune": prune,
            "norm": norm,
        }
        super().__init__(in_channels, num_classes, geometry, options, fused)
        self.last, self.mode, self._batch_norm = last, mode, norm == "batch"

        widths = level_widths(base_channels, depth)
        inputs = [in_channels, *widths]
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(ConvBlock(inputs[i], widths[i], "same", norm) for i in range(last + 1))
        self.nodes = nn.ModuleDict(
            {
                _key(i, j): _Node(widths[i + 1], j * widths[i], widths[i], "same", norm)
                for j in range(1, last + 1)
                for i in range(last + 1 - j)
            }
        )
        self.head_levels = list(range(last, 0, -1)) if deep_supervision and prune is None else [last]
        self.heads = nn.ModuleDict({str(j): nn.Conv2d(base_channels, num_classes, 1) for j in self.head_levels})
        init_he(self)

    def _computed(self, x: Tensor) -> Tensor | HeadOutputs:
        """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W), those of all heads in training mode."""
        self.check_input(x)
        if self._batch_norm:
            self.check_batch_statistics(x, self.last)
        levels: list[list[Tensor]] = []  # levels[i] = X(i, 0), X(i, 1), ...
        fusion = self.fusion(x)
        for block in self.encoder[:-1]:
            skip, x = run_and_pool(block, self.pool, x, fusion)
            assert isinstance(skip, Tensor)
            levels.append([skip])
        levels.append([self.encoder[-1](x, fusion)])
        for j in range(1, self.last + 1):
            for i in range(self.last + 1 - j):
                levels[i].append(self.nodes[_key(i, j)](levels[i + 1][j - 1], levels[i], fusion))
        if not self.training and self.mode == "fast":
            return self.heads[str(self.last)](levels[0][self.last])
        logits, *auxiliary = (self.heads[str(j)](levels[0][j]) for j in self.head_levels)
        if not auxiliary:
            return logits
        return HeadOutputs(logits, tuple(auxiliary)) if self.training else mean_logits((logits, *auxiliary))

    def pruned(self, level: int) -> UNetPlusPlus:
        """A new network, pruned to ``level``, with copies of this one's weights, its dtype, device and mode."""
        weight = next(self.parameters())
        arguments = {key: value for key, value in self.config.items() if key != "name"}
        small = UNetPlusPlus(**{**arguments, "prune": level})
        small.load_unpruned(self.state_dict())
        return small.to(weight.device, weight.dtype).train(self.training)

    def load_unpruned(self, state: Mapping[str, Tensor]) -> None:
        """Take what this (pruned) network needs out of the ``state_dict`` of a less pruned one.

        Raises ``InputError`` if something is missing or of another shape; a network trained without deep supervision
        has no head for the levels above its own.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            if name not in state:
                hint = "; was it trained without deep_supervision?" if name.startswith("heads.") else ""
                raise InputError(f"the weights have no {name!r}, which level {self.last} needs{hint}")
            if state[name].shape != tensor.shape:
                raise InputError(
                    f"the weights have {name!r} of shape {tuple(state[name].shape)}, this network needs "
                    f"{tuple(tensor.shape)}; build it with the same channels"
                )
        self.load_state_dict({name: state[name] for name in own})


class _Node(Up):
    """A node X(i, j): the up-sampled node below, joined with all earlier nodes of its level, [X(i, 0), ..., up]."""

    def forward(  # type: ignore[override]  # several skips, not one
        self, x: Tensor, skips: list[Tensor], fusion: Fusion = PLAIN
    ) -> Tensor:
        """``x`` = X(i + 1, j - 1), ``skips`` = X(i, 0 ... j - 1) -> X(i, j)."""
        if self.block.reads_apart(skips[0], fusion):
            return self.block([*skips, self.up_sampled(x, fusion)], fusion)
        # several maps of equal size: one pass, where the fused operators would need the skips joined first
        joined = self.join(x, skips[0], fusion) if len(skips) == 1 else torch.cat([*skips, self.up(x)], 1)
        return self.block(joined, fusion)


def _key(i: int, j: int) -> str:
    """The name of node X(i, j) in a ``state_dict``; the same whatever is pruned."""
    return f"{i}_{j}"
