"""Exact Euclidean distance transform of a batch of masks.

Kernels: csrc/cpu/distance_transform.cpp, csrc/cuda/distance_transform.cu, unet_fast/triton/distance_transform.py;
truth: unet_fast/reference/distance_transform.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unet_fast import checks, reference
from unet_fast.distance_options import spacing_of
from unet_fast.errors import InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import BY_DTYPE, DISTANCE


@_protocol.public
def distance_transform(mask: torch.Tensor, *, spacing: float | Sequence[float] | None = None) -> torch.Tensor:
    """Exact Euclidean distance from every pixel to the nearest zero of its image.

    Args:
        mask: (N, H, W) or (N, D, H, W), boolean, integer or floating; everything but 0 counts as inside (NaN too).
            Slices and transposes are copied first.
        spacing: size of a pixel along each spatial axis, (y, x) or (z, y, x), or one number for all; None is 1.

    Returns:
        float32 of the same shape, in units of ``spacing``; 0 at zeros. Infinite all over an image without any zero
        (where SciPy returns the distance to a pixel outside the image). No gradients. Squared distances are exact
        integers for equal spacings and float64 otherwise, so sides of any length are right.

    Raises:
        InputError: a wrong rank, or a spacing that is not positive and finite.
        InputTypeError: not a tensor, a complex mask, or a spacing that is not numbers.

    Source: the separable lower-envelope algorithm of Meijster, Roerdink and Hesselink (2000) and Felzenszwalb and
    Huttenlocher (2012); its time is linear in the number of pixels, whatever the mask is.

    Equivalent to (images with at least one zero)::

        torch.stack([torch.from_numpy(scipy.ndimage.distance_transform_edt(m, sampling=spacing)) for m in mask]).float()
    """
    checks.check_tensor("mask", mask)
    if mask.is_complex():
        raise InputTypeError(f"mask has dtype {str(mask.dtype).removeprefix('torch.')}, expected a real dtype")
    checks.check_rank("mask", mask, (3, 4), "(N, H, W) or (N, D, H, W)")
    steps = spacing_of(spacing, mask.dim() - 1)
    mask = mask.detach()
    if _backends.choose("distance_transform", mask.device.type) == "reference":
        return reference.distance_transform(mask, spacing=steps)
    return _record.run(torch.ops.unet_fast.distance_transform, mask, steps)


def _fake(mask: torch.Tensor, spacing: list[float]) -> torch.Tensor:
    return _tensors.new(mask, mask.shape, torch.float32)


_record.register(
    _record.Op(
        distance_transform,
        (_record.Operator("distance_transform(Tensor mask, float[] spacing) -> Tensor", _fake),),
        sample=lambda d, n, h, w: (d.labels(n, h, w),),
        tolerance=dict.fromkeys([*BY_DTYPE, torch.int64], DISTANCE),
        autocast="float32",
    )
)
