"""Soft Dice and cross-entropy from one pass over the logits, their gradient from one more.

The operator behind it adds up over pixels; what the losses of regions make of these sums is arithmetic on (N, K) numbers.

Kernels: csrc/cpu/dice_cross_entropy.cpp, csrc/cuda/dice_cross_entropy.cu, unet_fast/triton/dice_cross_entropy.py;
truth: unet_fast/reference/dice_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _targets, _tensors
from unet_fast.ops._tolerances import CROSS_ENTROPY, DICE_GRADIENT

ACTIVATIONS = ("softmax", "sigmoid")
OVER = ("sample", "batch")
REDUCTIONS = ("mean", "sum")


@_protocol.public
def dice_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    class_weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    include_background: bool = True,
    over: str = "sample",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """``lambda_dice * Dice loss + lambda_ce * cross-entropy``, the loss of MONAI's and nnU-Net's segmentation networks.

    The Dice loss of a class is ``1 - (2 sum(w p t) + smooth_nr) / (sum(w p) + sum(w t) + smooth_dr)`` with probability p, truth t
    and weight w of each pixel.

    Args:
        logits: (N, K, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16, contiguous or
            channels-last or a slice of either (other layouts are copied).
        target: a class map (N, *S) or (N, 1, *S) of integers (int8 to int64, uint8, uint16, bool), 0 to K - 1, for K = 1 a mask of 0
            and 1; or the truth of each class, (N, K, *S), one-hot in any of these dtypes or floating probabilities; for K = 1
            (N, *S) may be floating too.
        weight: (N, *S) or (N, 1, *S), floating; None counts as 1. A constant: it gets no gradient.
        activation: "softmax", "sigmoid" (each class on its own, with binary cross-entropy), or None: a sigmoid for K = 1.
        lambda_dice, lambda_ce: at least 0. What is 0 is not computed.
        class_weight: (K,) floating, at least 0: factors of the Dice losses (where several classes have one) and of the classes in the
            cross-entropy, as ``weight`` of ``F.cross_entropy`` (``pos_weight`` of the binary one). A constant.
        label_smoothing: from 0 to 1, of the cross-entropy of a softmax, as in ``F.cross_entropy``.
        include_background: whether class 0 has a Dice loss for K >= 2.
        over: "sample": Dice sums over each image; "batch": over all images.
        smooth_nr, smooth_dr: at least 0, in pixels. A class that is neither there nor predicted has loss 0 where both are 0.
        ignore_index: pixels with this class count for nothing, whatever their logits and weights, NaN included; not for
            targets (N, K, *S) with K >= 2.
        reduction: "mean": of the Dice losses over images and classes; of the cross-entropy, the sum of weighted losses over the
            number of counted pixels (of their class weights, and of pixels times classes for a sigmoid), as torch divides.
            "sum": neither is divided.

    Returns:
        A scalar, float64 for float64 logits, else float32, in which the arithmetic is done (with float64 sums), so that no
        autocast rule is needed. Second derivatives raise; ``unet_fast.reference.dice_cross_entropy`` has them.

    Raises:
        InputError: shapes or devices do not match, an option out of range, a target outside the classes or a probability
            outside 0 to 1 (under ``torch.compile`` a RuntimeError with the same text; on a GPU the loss is NaN instead), a weight
            that requires gradients.
        InputTypeError: not tensors, or a dtype that is not in the lists above.

    Source: Milletari, Navab, Ahmadi, V-Net (2016), with plain instead of squared sums; Isensee et al., nnU-Net (2021).

    Equivalent to, for a class map and a softmax::

        p, t = logits.softmax(1), F.one_hot(target, K).movedim(-1, 1)
        dice = 1 - (2 * (p * t).sum((2, 3)) + smooth_nr) / (p.sum((2, 3)) + t.sum((2, 3)) + smooth_dr)
        lambda_dice * dice.mean() + lambda_ce * F.cross_entropy(logits, target)

        monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)(logits, target.unsqueeze(1))
    """
    numbers = {"lambda_dice": lambda_dice, "lambda_ce": lambda_ce, "label_smoothing": label_smoothing}
    check_options(include_background, over, reduction, **numbers, smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    case = prepare(logits, target, weight, activation, class_weight, ignore_index)
    if label_smoothing and case.sigmoid:
        raise InputError("label_smoothing belongs to a softmax; with a sigmoid, soften the target itself")
    if _backends.choose("dice_cross_entropy", logits.device.type) == "reference":
        return reference.dice_cross_entropy(
            logits, target, weight, activation=activation, lambda_dice=lambda_dice, lambda_ce=lambda_ce, class_weight=class_weight,
            label_smoothing=label_smoothing, include_background=include_background, over=over, smooth_nr=smooth_nr,
            smooth_dr=smooth_dr, ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip
    options = (lambda_dice, lambda_ce, smooth_nr, smooth_dr, include_background, over == "batch", reduction == "mean")
    arguments = (*case.tensors(), ignore_index, label_smoothing, case.sigmoid, *options)
    return _record.run(torch.ops.unet_fast.dice_cross_entropy, *arguments)[0]


class Case(NamedTuple):
    """Checked arguments of the operator."""

    logits: torch.Tensor
    target: torch.Tensor  # (N, *S) integers, or (N, K, *S) in the wide dtype
    weight: torch.Tensor | None
    class_weight: torch.Tensor | None
    ignore_index: int
    sigmoid: bool

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """As the operators take them, which know no bool."""
        target = self.target.view(torch.uint8) if self.target.dtype == torch.bool else self.target
        return self.logits, target, self.weight, self.class_weight


class Sums(NamedTuple):
    """Over the pixels of each image, float64: (N, K), (N, K), (N, K), (N,), (N,)."""

    both: torch.Tensor  # w p t
    predicted: torch.Tensor  # w p
    true: torch.Tensor  # w t
    cross_entropy: torch.Tensor  # w times the loss of a pixel
    counted: torch.Tensor  # pixels, or the weights of their classes


def add_up(case: Case) -> Sums:
    """The sums, with gradients."""
    if _backends.choose("dice_cross_entropy", case.logits.device.type) == "reference":
        return Sums(*reference.region_sums(*case[:5], 0.0, case.sigmoid))
    arguments = (*case.tensors(), case.ignore_index, 0.0, case.sigmoid, False)
    return Sums(*_record.run(torch.ops.unet_fast.region_sums, *arguments))


def region_dice(sums: Sums, include_background: bool, over: str, smooth: float) -> torch.Tensor:
    """The soft Dice coefficient, 1 = perfect: (N, C), or (1, C) over the batch, of the C classes that count."""
    first = 0 if include_background or sums.both.shape[1] == 1 else 1
    chosen = (value[:, first:] for value in (sums.both, sums.predicted, sums.true))
    both, predicted, true = (value.sum(0, keepdim=True) if over == "batch" else value for value in chosen)
    return ratio(2 * both + smooth, predicted + true + smooth)


def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Their ratio, and 1 (perfect agreement, without gradient) where nothing is predicted, true or added."""
    empty = denominator <= 0
    return (numerator / denominator.masked_fill(empty, 1)).masked_fill(empty, 1)


def check_options(include_background: bool, over: str, reduction: str, label_smoothing: float, **least: float) -> None:
    """Raise for an option outside its range; ``least``: numbers of at least 0."""
    for name, value in {**least, "label_smoothing": label_smoothing}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(f"{name} is {value!r}, expected a number")
        if not 0 <= value < float("inf") or (name == "label_smoothing" and value > 1):
            raise InputError(
                f"{name} is {value!r}, expected a number of at least 0"
                + (", at most 1" if name == "label_smoothing" else "")
            )
    if not isinstance(include_background, bool):
        raise InputTypeError(f"include_background is {include_background!r}, expected True or False")
    checks.check_choice("over", over, OVER)
    checks.check_choice("reduction", reduction, REDUCTIONS)


def prepare(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    activation: str | None,
    class_weight: torch.Tensor | None,
    ignore_index: int,
) -> Case:
    """Check the arguments and bring them into the shapes and dtypes of the operator."""
    checks.check_tensor("logits", logits)
    checks.check_tensor("target", target)
    checks.check_dtype("logits", logits, checks.FLOATING)
    checks.check_rank("logits", logits, (3, 4, 5), "(N, K, H, W), or one or three spatial dimensions")
    checks.check_dtype("target", target, (*_targets.DTYPES, *checks.FLOATING))
    checks.check_same_device("logits", logits, "target", target)
    checks.check_ignore_index(ignore_index)
    if activation is not None:
        checks.check_choice("activation", activation, ACTIVATIONS)
    classes = logits.shape[1]
    if classes == 0:
        raise InputError(f"logits of shape {tuple(logits.shape)} have no channels, expected at least one")
    if classes == 1 and activation == "softmax":
        raise InputError(f"logits of shape {tuple(logits.shape)} have one channel, expected at least two for a softmax")
    wide = _tensors.wide(logits.dtype)
    if weight is not None:
        checks.check_weight("weight", weight, "logits", logits)
        weight = _pixels("weight", weight, logits).to(wide)
    if class_weight is not None:
        checks.check_tensor("class_weight", class_weight)
        checks.check_dtype("class_weight", class_weight, checks.FLOATING)
        checks.check_same_device("logits", logits, "class_weight", class_weight)
        if class_weight.shape != (classes,):
            raise InputError(
                f"class_weight has shape {tuple(class_weight.shape)}, expected ({classes},), one number a class"
            )
        class_weight = class_weight.detach().to(wide)
    target = _truth(target, logits, wide)
    return Case(logits, target, weight, class_weight, ignore_index, activation == "sigmoid" or classes == 1)


def _truth(target: torch.Tensor, logits: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """The target as the operator takes it."""
    classes, target = logits.shape[1], _targets.calculable(target)
    floating = target.dtype.is_floating_point
    checks.check_constant("target", target)
    if target.shape == logits.shape and (floating or classes > 1):
        return target.to(wide)  # the truth of each class
    expected = "" if classes == 1 else f", or {tuple(logits.shape)}, the truth of each class"
    target = _pixels("target", target, logits, expected)
    if floating and classes > 1:
        raise InputTypeError(
            f"target has dtype {str(target.dtype).removeprefix('torch.')}, but logits with {classes} classes expect an integer "
            "class map; pass target.long(), or the probability of each class"
        )
    return target.to(wide).unsqueeze(1) if floating else target


def _pixels(name: str, value: torch.Tensor, logits: torch.Tensor, more: str = "") -> torch.Tensor:
    """``value`` as (N, *S); the channel may be written out or not."""
    words = f"that of the logits {tuple(logits.shape)} without the classes{more}"
    return _targets.of_pixels(name, value, (logits.shape[0], *logits.shape[2:]), words)


def _fake(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, class_weight: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    slopes = _tensors.new(logits, (logits.shape[0], 2 * logits.shape[1] + 1), torch.float64)
    return _tensors.new(logits, (), _tensors.wide(logits.dtype)), slopes


def _fake_sums(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, class_weight: torch.Tensor | None, *_: Any
) -> tuple[torch.Tensor, ...]:
    regions, images = (logits.shape[0], logits.shape[1]), (logits.shape[0],)
    return tuple(_tensors.new(logits, shape, torch.float64) for shape in (regions, regions, regions, images, images))


def _fake_backward(slopes: torch.Tensor, logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return _tensors.new(logits, logits.shape, layout=_tensors.dense_format(logits))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    slopes = output[1]
    ctx.mark_non_differentiable(slopes)
    ctx.set_materialize_grads(False)
    *tensors, ignore_index, smoothing, sigmoid = inputs[:7]
    ctx.options = (ignore_index, smoothing, sigmoid, inputs[8] != 0)
    ctx.save_for_backward(slopes, *tensors)


def _backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("dice_cross_entropy")
    if grad is None:
        return (None,) * 14
    slopes, *tensors = ctx.saved_tensors
    if not _record.is_plain_one(grad):
        slopes = slopes * grad
    return _record.run(torch.ops.unet_fast.dice_cross_entropy_backward, slopes, *tensors, *ctx.options), *(None,) * 13


def _setup_sums(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[2], output[4])
    *tensors, ignore_index, smoothing, sigmoid, loss = inputs
    ctx.options = (ignore_index, smoothing, sigmoid, loss)
    ctx.save_for_backward(*tensors)


def _backward_of_sums(
    ctx: Any, both: torch.Tensor, predicted: torch.Tensor, true: Any, loss: torch.Tensor, counted: Any
) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("dice_cross_entropy")
    slopes = torch.cat([both, predicted, loss.unsqueeze(1)], 1)
    return _record.run(torch.ops.unet_fast.dice_cross_entropy_backward, slopes, *ctx.saved_tensors, *ctx.options), *(
        None,
    ) * 7


_record.register(
    _record.Op(
        dice_cross_entropy,
        (
            _record.Operator(
                "dice_cross_entropy(Tensor logits, Tensor target, Tensor? weight, Tensor? class_weight, int ignore_index, "
                "float smoothing, bool sigmoid, float lambda_dice, float lambda_ce, float smooth_nr, float smooth_dr, "
                "bool background, bool batch, bool mean) -> (Tensor loss, Tensor slopes)",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "region_sums(Tensor logits, Tensor target, Tensor? weight, Tensor? class_weight, int ignore_index, "
                "float smoothing, bool sigmoid, bool loss) -> "
                "(Tensor both, Tensor predicted, Tensor true, Tensor cross_entropy, Tensor counted)",
                _fake_sums,
                _backward_of_sums,
                _setup_sums,
            ),
            _record.Operator(
                "dice_cross_entropy_backward(Tensor slopes, Tensor logits, Tensor target, Tensor? weight, Tensor? class_weight, "
                "int ignore_index, float smoothing, bool sigmoid, bool loss) -> Tensor",
                _fake_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.labels(n, h, w), d.wide(n, h, w).abs(), d.wide(3).abs()),
        arguments=lambda x, t, w, c: (
            (x, t, w),
            {"class_weight": c, "label_smoothing": 0.1, "include_background": False},
        ),
        tolerance=CROSS_ENTROPY,
        leaves=(0,),
        gradient=DICE_GRADIENT,
        autocast="wide",
    )
)
