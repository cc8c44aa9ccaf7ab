"""The 1x1 head of a network and its weighted softmax loss in one pass over the features; the logits are never stored.

Kernels: csrc/cpu/head_cross_entropy.cpp, csrc/cuda/head_cross_entropy.cu, unet_fast/triton/head_cross_entropy.py;
truth: unet_fast/reference/head_cross_entropy.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _protocol, _record, _targets, _tensors
from unet_fast.ops._tolerances import CROSS_ENTROPY, HEAD_GRADIENT
from unet_fast.ops.weighted_cross_entropy import REDUCTIONS, scaled_in_place, weighted_cross_entropy
from unet_fast.reference.head_cross_entropy import head_logits


@_protocol.public
def head_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    pixel_weight: torch.Tensor | None = None,
    *,
    relu: bool = False,
    feature_bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss of ``conv1x1(features)`` for training: :func:`weighted_cross_entropy` of logits that are never stored.

    Args:
        features: (N, C, *S) with one to three spatial dimensions; float32, float64, float16 or bfloat16, contiguous or
            channels-last or a slice of either (other layouts are copied).
        weight: (K, C) or (K, C, 1, ...), K >= 2 classes; floating: the weight of a 1x1 convolution. It and the biases
            are taken in float32 (float64 for float64 features), also under autocast, and so are the logits.
        bias: (K,) floating, or None.
        target: class map (N, *S) or (N, 1, *S) with values 0 to K - 1, or ``ignore_index``, or one-hot (N, K, *S); int8 to int64, uint16,
            uint8 or bool.
        pixel_weight: (N, *S) floating, such as the result of :func:`weight_map`; None counts as 1. A constant: it gets
            no gradient.
        relu: apply a ReLU to the features first, within the same pass.
        feature_bias: (C,) added to the features in front of that ReLU; with ``relu`` only.
        ignore_index: pixels with this target count for nothing, whatever their features and weights, NaN included.
        reduction: "mean" (over counted pixels), "weight_mean" or "sum", as in :func:`weighted_cross_entropy`.

    Returns:
        The loss, a scalar, float64 for float64 features, else float32. When no pixel is counted, or the weights sum to
        0, the means are 0 and so are the gradients. The gradients of the features, the weight and the biases come from
        the same pass, so the backward only scales them. Second derivatives raise;
        ``unet_fast.reference.head_cross_entropy`` has them. Meant for few classes: the work is 6 K C a pixel. On a
        GPU more than 8 classes (4 in float64) or 256 channels are a product and then the loss, with logits in memory.

    Raises:
        InputError: shapes or devices do not match, fewer than two classes, an unknown reduction, a target outside the
            classes (under ``torch.compile`` this one is a RuntimeError with the same text; on a GPU, where
            the host would have to wait for the check, the loss is NaN instead, and so are the gradients that the pixel reaches), pixel
            weights that require gradients, ``feature_bias`` without ``relu``; a second derivative.
        InputTypeError: not tensors, or a dtype that is not in the lists above.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), "1x1 convolution" and equation 1.

    Equivalent to::

        y = F.relu(features + feature_bias[:, None, None]) if relu else features
        weighted_cross_entropy(F.conv2d(y, weight.view(K, C, 1, 1), bias), target, pixel_weight)
    """
    target, pixel_weight = _checked(features, weight, target, pixel_weight, ignore_index, reduction)
    wide = _tensors.wide(features.dtype)
    weight = weight.flatten(1).to(wide)
    bias = None if bias is None else _tensors.wide_bias(bias, features, weight.shape[0])
    if feature_bias is not None:
        if not relu:
            raise InputError(
                "feature_bias was given without relu=True; add it to the convolution that made the features"
            )
        feature_bias = _tensors.wide_bias(feature_bias, features, features.shape[1])
    pixel_weight = None if pixel_weight is None else pixel_weight.to(wide)
    if _backends.choose("head_cross_entropy", features.device.type) == "reference":
        return reference.head_cross_entropy(
            features,
            weight,
            bias,
            target,
            pixel_weight,
            relu=relu,
            feature_bias=feature_bias,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    if features.device.type != "cpu" and not fits_registers(weight.shape[0], weight.shape[1], features.dtype):
        logits = head_logits(features, weight, bias, target != ignore_index, relu, feature_bias)
        return weighted_cross_entropy(logits, target, pixel_weight, ignore_index=ignore_index, reduction=reduction)
    inputs = (features, weight, bias, feature_bias)
    want_grad = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    code = REDUCTIONS.index(reduction)
    arguments = (features, feature_bias, relu, weight, bias, target, pixel_weight, ignore_index, code, want_grad)
    return _record.run(torch.ops.unet_fast.head_cross_entropy, *arguments)[0]


def fits_registers(classes: int, channels: int, dtype: torch.dtype) -> bool:
    """Whether the GPU kernels take this many; beyond that, a matrix product followed by the loss is as fast."""
    return classes <= (4 if dtype == torch.float64 else 8) and channels <= 256


def _checked(
    features: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    pixel_weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Target and weight of the pixels as the operator takes them."""
    for name, tensor in (("features", features), ("weight", weight), ("target", target)):
        checks.check_tensor(name, tensor)
        checks.check_same_device("features", features, name, tensor)
    checks.check_dtype("features", features, checks.FLOATING)
    checks.check_dtype("weight", weight, checks.FLOATING)
    checks.check_rank("features", features, (3, 4, 5), "(N, C, H, W), or one or three spatial dimensions")
    checks.check_choice("reduction", reduction, REDUCTIONS[1:])
    checks.check_ignore_index(ignore_index)
    channels = features.shape[1]
    if weight.dim() < 2 or weight.shape[0] < 2 or weight.shape[1] != channels or weight.shape[2:].numel() != 1:
        raise InputError(
            f"weight has shape {tuple(weight.shape)}, expected (K, {channels}) or (K, {channels}, 1, 1) with at least "
            "2 classes K"
        )
    pixels = (features.shape[0], *features.shape[2:])
    target = _targets.class_map(
        target, weight.shape[0], pixels, f"that of the features {tuple(features.shape)} without the channels"
    )
    return target, _targets.weight_of_pixels("pixel_weight", pixel_weight, "features", features, pixels)


_DIFFERENTIABLE = (0, 1, 3, 4)  # of the operator's arguments: features, feature_bias, weight, bias


def _fake(
    features: torch.Tensor,
    feature_bias: torch.Tensor | None,
    relu: bool,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    pixel_weight: torch.Tensor | None,
    ignore_index: int,
    reduction: int,
    want_grad: bool,
) -> tuple[torch.Tensor, ...]:
    wide = _tensors.wide(features.dtype)
    loss = _tensors.new(features, (), wide)
    if not want_grad:
        return loss, _tensors.new(features, (0,)), *(_tensors.new(features, (0,), wide) for _ in range(3))
    # as in weighted_cross_entropy: the gradient of a mean over many pixels lies below the range of float16
    dtype = wide if features.dtype == torch.float16 else features.dtype
    grad = _tensors.new(features, features.shape, dtype, _tensors.dense_format(features))
    k, c = weight.shape
    shapes: tuple[tuple[int, ...], ...] = ((c,), (k, c), (k,))
    return loss, grad, *(_tensors.new(features, shape, wide) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    features, ctx.want_grad = inputs[0], inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.leaves = [index for index in _DIFFERENTIABLE if inputs[index] is not None and inputs[index].is_leaf]
    ctx.dtype = features.dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_output: torch.Tensor | None, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("head_cross_entropy")
    if not ctx.want_grad:
        raise RuntimeError("head_cross_entropy was called with want_grad=False, so it has no gradient")
    grads: list[torch.Tensor | None] = [None] * 10
    if grad_output is None:
        return tuple(grads)
    wanted = [pair for pair in zip(_DIFFERENTIABLE, ctx.saved_tensors, strict=True) if ctx.needs_input_grad[pair[0]]]
    done, one = scaled_in_place([grad for _, grad in wanted], grad_output), _record.is_plain_one(grad_output)
    for index, grad in wanted:
        # autograd may keep the gradient of a leaf and add to it in place: a leaf never gets a tensor that stays saved
        grads[index] = grad if done or (one and index not in ctx.leaves) else grad * grad_output
    if grads[0] is not None:
        grads[0] = grads[0].to(ctx.dtype)
    return tuple(grads)


def _flops(features: Sequence[int], feature_bias: Any, relu: bool, weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """The products of the logits; where gradients are made in the same pass, those of features and weight as well."""
    want_grad = rest[-1]
    return 2 * features[0] * math.prod(features[2:]) * math.prod(weight) * (3 if want_grad else 1)


_record.register(
    _record.Op(
        head_cross_entropy,
        (
            _record.Operator(
                "head_cross_entropy(Tensor features, Tensor? feature_bias, bool relu, Tensor weight, Tensor? "
                "bias, Tensor target, Tensor? pixel_weight, int ignore_index, int reduction, bool want_grad) "
                "-> (Tensor loss, Tensor grad_features, Tensor grad_feature_bias, Tensor grad_weight, Tensor "
                "grad_bias)",
                _fake,
                _backward,
                _setup_context,
                _flops,
            ),
        ),
        sample=lambda d, n, h, w: (
            *(d.image(n, 3, h, w), d.wide(2, 3), d.wide(2)),
            *(d.labels(n, h, w, classes=2), d.wide(n, h, w).abs(), d.wide(3)),
        ),
        arguments=lambda *tensors: (tensors[:5], {"relu": True, "feature_bias": tensors[5]}),
        tolerance=CROSS_ENTROPY,
        leaves=(0, 1, 2, 5),
        gradient=HEAD_GRADIENT,
        autocast="wide",
    )
)
