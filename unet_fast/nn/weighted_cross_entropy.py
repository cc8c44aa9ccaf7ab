"""The loss of the U-Net as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.ops import weighted_cross_entropy


class WeightedCrossEntropyLoss(nn.Module):
    """Softmax cross-entropy of every pixel times a weight, as in the U-Net paper.

    ``forward(logits, target, weight=None)``: (N, K, *S), (N, *S) integers, (N, *S) -> a scalar, or (N, *S) for
    ``reduction="none"``; see :func:`unet_fast.ops.weighted_cross_entropy` for dtypes, reductions and errors.
    No parameters.

    Equivalent to::

        (F.cross_entropy(logits, target, reduction="none") * weight).mean()
    """

    def __init__(self, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the reduced loss."""
        return weighted_cross_entropy(logits, target, weight, ignore_index=self.ignore_index, reduction=self.reduction)

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
