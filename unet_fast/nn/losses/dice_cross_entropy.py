"""Soft Dice and cross-entropy as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unet_fast.nn.losses import _pixels
from unet_fast.nn.losses._module import Loss
from unet_fast.ops import dice_cross_entropy
from unet_fast.ops.dice_cross_entropy import check_options


class DiceCELoss(Loss):
    """:func:`unet_fast.ops.dice_cross_entropy` as a module, with its keywords: ``forward(logits, target, weight=None)``.

    ``class_weight``: numbers by class (a sequence or a tensor), which become a buffer that moves with the module. The value is
    that of ``monai.losses.DiceCELoss`` (with one channel and ``sigmoid=True``, or several and ``softmax=True,
    to_onehot_y=True``), and 1 more than nnU-Net's ``DC_and_CE_loss``, which counts the Dice coefficient negatively, with
    ``include_background=False``.

    Example::

        loss = uf.nn.DiceCELoss(over="batch", include_background=False)
        loss(logits, labels).backward()
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        activation: str | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        class_weight: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        include_background: bool = True,
        over: str = "sample",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        numbers = {"lambda_dice": lambda_dice, "lambda_ce": lambda_ce, "label_smoothing": label_smoothing}
        check_options(include_background, over, reduction, **numbers, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
        options = {
            "include_background": include_background,
            "over": over,
            "smooth_nr": smooth_nr,
            "smooth_dr": smooth_dr,
        }
        super().__init__(activation=activation, **numbers, **options, ignore_index=ignore_index, reduction=reduction)
        given = None if class_weight is None else _pixels.class_vector("class_weight", class_weight)
        self.register_buffer("class_weight", None if given is None else given.float())

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the reduced loss."""
        return dice_cross_entropy(logits, target, weight, class_weight=self.class_weight, **self.options)
