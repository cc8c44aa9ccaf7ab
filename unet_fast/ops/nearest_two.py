"""Distances to the nearest and the second nearest distinct instance, exactly, whatever their number.

Kernels: csrc/cpu/nearest_two.cpp, csrc/cuda/nearest_two.cu, unet_fast/triton/nearest_two.py;
truth: unet_fast/reference/nearest_two.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unet_fast import reference
from unet_fast.distance_options import spacing_of
from unet_fast.ops import _backends, _instances, _protocol, _record, _tensors
from unet_fast.ops._tolerances import BY_DTYPE, DISTANCE


@_protocol.public
def nearest_two(
    instances: torch.Tensor, *, spacing: float | Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact Euclidean distance from every pixel to the nearest and to the second nearest distinct instance.

    Args:
        instances: (N, H, W) or (N, D, H, W) labels, 0 = background, every other value one instance (which may have
            several components); uint8, int8, uint16, int16, int32 or int64. Slices and transposes are copied first.
        spacing: size of a pixel along each spatial axis, (y, x) or (z, y, x), or one number for all; None is 1.

    Returns:
        d1, d2: float32 of the same shape, in units of ``spacing``. The distance to an instance is the distance to the
        nearest of its pixels: 1 beside it, 0 on it. On a pixel of instance a, d1 = 0 and d2 is the distance to the
        nearest other instance. d2 is infinite where an image has fewer than two instances, d1 where it has none.
        No gradients.

    Raises:
        InputError: a wrong rank, a negative label or one above 2^31 - 1 (under ``torch.compile`` these are
            RuntimeErrors with the same text; on a GPU, where the host would have to wait for the check, nothing is raised and
            both distances are NaN where such a label is the nearest), or a spacing that is not positive and finite.
        InputTypeError: not an integer tensor, or a spacing that is not numbers.

    Time is linear in the number of pixels and does not depend on the number of instances: each pixel keeps the two
    nearest distinct labels of its column, then each row takes two lower envelopes of parabolas, the second without the
    label that won the first (csrc/common/two_nearest.h). On a GPU each pixel instead looks along its row until the next
    column is farther away than what it has found, and beyond 32 columns skips blocks of 32 that cannot matter
    (csrc/cuda/distance_search.h): fast in images full of cells, and few steps where there are hardly any.

    Equivalent to (for one image with at least two instances)::

        edt = scipy.ndimage.distance_transform_edt
        distances = np.sort([edt(image != label, sampling=spacing) for label in np.unique(image[image != 0])], axis=0)
        d1, d2 = distances[0], distances[1]
    """
    _instances.check_instances(instances, (3, 4), "(N, H, W) or (N, D, H, W)")
    steps = spacing_of(spacing, instances.dim() - 1)
    if _backends.choose("nearest_two", instances.device.type) == "reference":
        _instances.check_labels(instances)
        return reference.nearest_two(instances, spacing=steps)
    return _record.run(torch.ops.unet_fast.nearest_two, instances, steps)


def _fake(instances: torch.Tensor, spacing: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        _tensors.new(instances, instances.shape, torch.float32),
        _tensors.new(instances, instances.shape, torch.float32),
    )


_record.register(
    _record.Op(
        nearest_two,
        (_record.Operator("nearest_two(Tensor instances, float[] spacing) -> (Tensor d1, Tensor d2)", _fake),),
        sample=lambda d, n, h, w: (d.labels(n, h, w, classes=5),),
        tolerance=dict.fromkeys([*BY_DTYPE, torch.int64], DISTANCE),
        autocast="float32",
    )
)
