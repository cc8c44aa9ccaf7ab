"""The U-Net's loss weight per pixel, from instance labels in one call.

Kernels: csrc/cpu/weight_map.cpp, csrc/cuda/weight_map.cu, unet_fast/triton/weight_map.py;
truth: unet_fast/reference/weight_map.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.distance_options import check_border
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _instances, _protocol, _record, _tensors
from unet_fast.ops._tolerances import BY_DTYPE, WEIGHT_MAP


@_protocol.public
def weight_map(
    instances: torch.Tensor,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: str | torch.Tensor | None = None,
    inside: bool = False,
) -> torch.Tensor:
    """Loss weight ``w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2))``: class balance plus emphasis on narrow gaps.

    Args:
        instances: (N, H, W) labels, 0 = background, every other value one cell; uint8, int8, uint16, int16, int32 or
            int64. Touching cells need a background ridge between them, else there is no gap to emphasise.
        w0: height of the border term, >= 0.
        sigma: its width in pixels, > 0.
        class_weights: w_c. None: 1. "balanced": for each image separately, pixels / (classes present * pixels of the class),
            so the mean over each image is 1 and an image without cells (or without background) gets 1. A tensor: two
            numbers [background, cells].
        inside: whether the border term also counts on the pixels of cells (where d1 = 0). The paper does not say; its
            figures show none there, so the default is no.

    Returns:
        (N, H, W) float32. d1, d2: distance to the nearest pixel of the nearest and of the second nearest cell, so 1
        beside a cell (see :func:`nearest_two`). The border term is 0 in images with fewer than two cells, and may be
        left out where d1 + d2 > 5.7 sigma, which makes it less than 1e-7 w0. No gradients.

    Raises:
        InputError: a wrong rank or device, a negative label or one above 2^31 - 1 (under ``torch.compile`` these are
            RuntimeErrors with the same text; on a GPU, where the host would have to wait for the check, nothing is raised and
            the weight is NaN where such a label is the nearest), w0, sigma or class_weights out of range.
        InputTypeError: not an integer tensor, or class_weights of another type.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), equation 2 (w0 = 10, sigma = 5).

    Equivalent to (class_weights=None)::

        d1, d2 = nearest_two(instances)
        1 + (w0 * torch.exp(-((d1 + d2) ** 2) / (2 * sigma**2))).where(instances == 0, 0)
    """
    _instances.check_instances(instances, (3,), "(N, H, W)")
    w0, sigma = check_border(w0, sigma)
    pair = _check_class_weights(class_weights, instances)
    if _backends.choose("weight_map", instances.device.type) == "reference":
        _instances.check_labels(instances)
        return reference.weight_map(instances, w0=w0, sigma=sigma, class_weights=class_weights, inside=inside)
    balanced = pair is None and class_weights is not None
    return _record.run(torch.ops.unet_fast.weight_map, instances, w0, sigma, pair, balanced, bool(inside))


def _check_class_weights(class_weights: str | torch.Tensor | None, instances: torch.Tensor) -> torch.Tensor | None:
    """The two weights as float32, or None where there is no tensor."""
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        checks.check_choice("class_weights", class_weights, ("balanced",))
        return None
    if not isinstance(class_weights, torch.Tensor):
        raise InputTypeError(
            f"class_weights is a {type(class_weights).__name__}, "
            "expected None, 'balanced' or a tensor [background, cells]"
        )
    if tuple(class_weights.shape) != (2,):
        raise InputError(f"class_weights has shape {tuple(class_weights.shape)}, expected (2,): [background, cells]")
    checks.check_same_device("instances", instances, "class_weights", class_weights)
    return class_weights.detach().to(torch.float32)


def _fake(instances: torch.Tensor, *options: Any) -> torch.Tensor:
    return _tensors.new(instances, instances.shape, torch.float32)


_record.register(
    _record.Op(
        weight_map,
        (
            _record.Operator(
                "weight_map(Tensor instances, float w0, float sigma, Tensor? class_weights, bool balanced, "
                "bool inside) -> Tensor",
                _fake,
            ),
        ),
        sample=lambda d, n, h, w: (d.labels(n, h, w, classes=5),),
        tolerance=dict.fromkeys([*BY_DTYPE, torch.int64], WEIGHT_MAP),
        autocast="float32",
    )
)
