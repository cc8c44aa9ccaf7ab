"""The scores of objects in a report: average precision, splits and merges, variation of information, adapted Rand error."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from unet_fast import metrics
from unet_fast.metrics._instances import scored_instances


def object_scores(cells: NDArray[Any], truth: NDArray[Any], kind: str, tolerance: float | None) -> dict[str, Any]:
    """Fields of :class:`unet_fast.report.Report` of predicted objects ``(N, H, W)``; those of true instances are None for others."""
    segments = scored_instances(truth, kind)
    variation = metrics.variation_of_information_scores(cells, segments, tolerance=tolerance, volume=False)
    rand = metrics.adapted_rand_error(cells, segments, tolerance=tolerance, volume=False)
    fields: dict[str, Any] = {"vi_split": variation.split, "vi_merge": variation.merge, "adapted_rand_error": rand}
    names = ("seg", "average_precision", "ious", "splits", "merges")
    if kind != "instances":
        return {**fields, **dict.fromkeys(names)}
    found = metrics.detections(cells, truth)
    values = (
        metrics.seg(cells, truth),
        found.average_precision.tolist(),
        found.ious.tolist(),
        int(found.splits.sum()),
        int(found.merges.sum()),
    )
    return {**fields, **dict(zip(names, values, strict=True))}
