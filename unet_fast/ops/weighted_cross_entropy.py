"""Pixel-wise softmax cross-entropy times a weight per pixel; loss and gradient come from one pass over the logits.

Kernels: csrc/cpu/weighted_cross_entropy.cpp, csrc/cuda/weighted_cross_entropy.cu and weighted_cross_entropy_backward.cu,
unet_fast/triton/weighted_cross_entropy.py; truth: unet_fast/reference/weighted_cross_entropy.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _protocol, _record, _targets, _tensors
from unet_fast.ops._tolerances import CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT

REDUCTIONS = ("none", "sum", "mean", "weight_mean")  # in the order of uf::Reduction
_IN_PLACE_ON = {"cuda"}  # where the factor of a gradient cannot be read


@_protocol.public
def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss of the U-Net: ``weight[x] * -log softmax(logits[x])[target[x]]``, reduced over the pixels x.

    Args:
        logits: (N, K, *S) with one to three spatial dimensions and K >= 2 classes; float32, float64, float16 or
            bfloat16, contiguous or channels-last or a slice of either (other layouts are copied).
        target: class map (N, *S) or (N, 1, *S) with values 0 to K - 1, or ``ignore_index``, or one-hot (N, K, *S); int8 to int64, uint16,
            uint8 or bool.
        weight: (N, *S) or (N, 1, *S) floating, such as the result of :func:`weight_map`; None counts as 1. A constant: it gets no
            gradient.
        ignore_index: pixels with this target count for nothing, whatever their logits and weights, NaN included.
        reduction: "mean": sum of the weighted losses / number of counted pixels (as in the paper, where a weight
            changes the size of the loss); "weight_mean": sum / sum of the weights of counted pixels; "sum"; "none".

    Returns:
        The loss, a scalar, or (N, *S) for "none" with 0 at ignored pixels. float64 for float64 logits, else float32, in
        which the arithmetic is done (with float64 sums), so that no autocast rule is needed. When no pixel is counted,
        or the weights sum to 0, the means are 0 and so is their gradient (where ``F.cross_entropy`` gives NaN). NaN and
        infinite largest logits of a counted pixel give NaN. The gradient comes with the loss: the backward pass only
        scales it. Second derivatives raise; ``unet_fast.reference.weighted_cross_entropy`` has them.

    Raises:
        InputError: shapes or devices do not match, fewer than two classes, an unknown reduction, a target outside the
            classes (under ``torch.compile`` this one is a RuntimeError with the same text; on a GPU, where
            the host would have to wait for the check, the loss and the gradient of that pixel are NaN instead), a weight that requires
            gradients.
        InputTypeError: not tensors, or a dtype that is not in the lists above.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), equation 1.

    Equivalent to::

        (F.cross_entropy(logits, target, reduction="none", ignore_index=ignore_index) * weight).sum() \
            / (target != ignore_index).sum()
    """
    target, weight = _checked(logits, target, weight, ignore_index, reduction)
    backend = _backends.choose("weighted_cross_entropy", logits.device.type)
    if backend == "reference":
        return reference.weighted_cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction)
    if weight is not None:
        weight = weight.to(_tensors.wide(logits.dtype))
    want_grad = torch.is_grad_enabled() and logits.requires_grad
    arguments = (logits, target, weight, ignore_index, REDUCTIONS.index(reduction), want_grad)
    return _record.run(torch.ops.unet_fast.weighted_cross_entropy, *arguments)[0]


def _checked(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, reduction: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Target and weight as the operator takes them."""
    checks.check_tensor("logits", logits)
    checks.check_tensor("target", target)
    checks.check_dtype("logits", logits, checks.FLOATING)
    checks.check_rank("logits", logits, (3, 4, 5), "(N, K, H, W), or one or three spatial dimensions")
    checks.check_same_device("logits", logits, "target", target)
    checks.check_choice("reduction", reduction, REDUCTIONS)
    checks.check_ignore_index(ignore_index)
    if logits.shape[1] < 2:
        raise InputError(
            f"logits of shape {tuple(logits.shape)} have {logits.shape[1]} classes, expected at least 2; "
            "for a single output channel use a binary cross-entropy"
        )
    pixels = (logits.shape[0], *logits.shape[2:])
    target = _targets.class_map(
        target, logits.shape[1], pixels, f"that of the logits {tuple(logits.shape)} without the classes"
    )
    return target, _targets.weight_of_pixels("weight", weight, "logits", logits, pixels)


def _fake(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: int,
    want_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = _tensors.wide(logits.dtype)
    loss = _tensors.new(logits, target.shape if REDUCTIONS[reduction] == "none" else (), wide)
    if not want_grad:
        return loss, _tensors.new(logits, (0,))
    # the gradient of a mean over many pixels lies below the range of float16: it waits in float32 for the loss scale
    dtype = wide if logits.dtype == torch.float16 else logits.dtype
    grad = _tensors.new(logits, logits.shape, dtype, _tensors.dense_format(logits))
    return loss, grad


def _fake_backward(grad_output: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return _tensors.new(grad, grad.shape, layout=_tensors.dense_format(grad))


def _setup_context(
    ctx: Any,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, int, bool],
    output: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, grad = inputs[0], output[1]
    ctx.mark_non_differentiable(grad)
    ctx.set_materialize_grads(False)
    # autograd may keep the gradient of a leaf as its .grad and add to it in place: a leaf never gets the saved tensor
    ctx.may_share = not logits.is_leaf and grad.dtype == logits.dtype
    ctx.dtype, ctx.want_grad = logits.dtype, inputs[5]
    ctx.save_for_backward(grad)


def _backward(
    ctx: Any, grad_output: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, None, None, None, None, None]:
    if not ctx.want_grad:
        raise RuntimeError("weighted_cross_entropy was called with want_grad=False, so it has no gradient")
    _record.no_second_derivative("weighted_cross_entropy")
    if grad_output is None:
        return None, None, None, None, None, None
    (grad,) = ctx.saved_tensors
    if scaled_in_place([grad], grad_output):
        grad = grad.to(ctx.dtype)
    elif not (ctx.may_share and _record.is_plain_one(grad_output)):
        grad = _record.run(torch.ops.unet_fast.weighted_cross_entropy_backward, grad_output, grad).to(ctx.dtype)
    return grad, None, None, None, None, None


def scaled_in_place(grads: list[torch.Tensor], grad_output: torch.Tensor) -> bool:
    """Multiply saved gradients with that of the loss in their own memory, where that is possible, and say whether it was.

    On a GPU, where only the device knows the factor: it is nearly always 1, and then nothing is read or written. Not where
    the graph is kept for another backward pass, which will need what was saved, and not while a graph is traced.
    """
    plain = grad_output.device.type in _IN_PLACE_ON and grad_output.dim() == 0
    if (
        not plain
        or torch.compiler.is_compiling()
        or any(type(tensor) is not torch.Tensor for tensor in (grad_output, *grads))
    ):
        return False
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return False
    _record.run(torch.ops.unet_fast.weighted_cross_entropy_backward_, grads, grad_output)
    return True


_record.register(
    _record.Op(
        weighted_cross_entropy,
        (
            _record.Operator(
                "weighted_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, int "
                "reduction, bool want_grad) -> (Tensor loss, Tensor grad)",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "weighted_cross_entropy_backward(Tensor grad_output, Tensor grad) -> Tensor", _fake_backward
            ),
            _record.Operator(
                "weighted_cross_entropy_backward_(Tensor(a!)[] grads, Tensor grad_output) -> ()",
                lambda grads, grad_output: None,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, h, w), d.labels(n, h, w), d.wide(n, h, w).abs()),
        tolerance=CROSS_ENTROPY,
        leaves=(0,),
        gradient=CROSS_ENTROPY_GRADIENT,
        autocast="wide",
    )
)
