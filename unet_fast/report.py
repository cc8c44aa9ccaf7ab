"""The result of an evaluation: scores with a name each, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_fast.files import atomic_path

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class SliceScores:
    """Scores of one slice; ``rand_error`` is NaN where the slice holds no true cell."""

    name: str
    pixel_error: float  #: at the threshold that is best for the stack
    rand_error: float  #: likewise, at that of the Rand error
    dice: float  #: at 0.5, or of the most probable class
    iou: float


@dataclass(frozen=True)
class Report:
    """Scores of a stack. The first five are the ones to quote; all float, errors lower the better."""

    pixel_error: float  #: 1 - best F of the foreground pixels over thresholds 0.0, 0.1, ..., 1.0
    rand_error: float  #: 1 - best F of pairs of pixels over the same thresholds
    dice: float  #: at threshold 0.5 (or of the most probable class), mean over the classes but 0
    iou: float  #: likewise
    best_threshold: float  #: where Dice of the foreground is best, of 0.00, 0.02, ..., 1.00
    best_dice: float  #: Dice of the foreground there
    num_slices: int
    num_classes: int
    squared_difference: float  #: mean of (probability - truth)^2
    pixel_threshold: float  #: threshold of the pixel error
    rand_threshold: float | None  #: threshold of the Rand error; None for predicted instances
    rand_precision: float
    rand_recall: float
    v_rand: float  #: after border thinning, at the threshold of the Rand error; higher is better
    v_info: float  #: likewise
    warping_error: float  #: at 0.5
    seg: float | None  #: of the components at the threshold of the Rand error; for true instances only
    average_precision: list[float] | None  #: TP / (TP + FP + FN) of the same objects at each of ``ious``
    ious: list[float] | None
    splits: int | None  #: true objects that hold more than half of each of several predicted ones
    merges: int | None  #: predicted objects that hold more than half of each of several true ones
    vi_split: (
        float  #: variation of information in bits, over-segmentation; of the same objects or cells, slice by slice
    )
    vi_merge: float  #: likewise, under-segmentation
    adapted_rand_error: float  #: likewise, as CREMI defines it
    dice_per_class: list[float]
    iou_per_class: list[float]
    per_slice: list[SliceScores]
    thresholds: list[float]  #: of the two curves below
    pixel_scores: list[float]  #: F of foreground pixels
    rand_scores: list[float]  #: F of pairs; a single entry for predicted instances
    dice_thresholds: list[float]  #: of the curve below
    dice_scores: list[float]  #: Dice of the foreground

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, floats and strings, the five main scores first; None stands for what is undefined (NaN)."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def print(self, console: Console | None = None, *, max_slices: int = 40) -> None:
        """:func:`print_report` of this report."""
        print_report(self, console, max_slices=max_slices)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_json` to ``path``, all or nothing."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json() + "\n")
        return Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, SliceScores):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return None if isinstance(value, float) and math.isnan(value) else value


def print_report(report: Report, console: Console | None = None, *, max_slices: int = 40) -> None:
    """Print a report as tables. Of more than ``max_slices`` slices, those with the largest Rand errors are listed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()

    def number(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:.4f}"

    # masks and labels are the same at each threshold but 1.0, so that none is the best
    masks = len(set(report.pixel_scores[:-1])) == 1

    def at(threshold: float | None) -> str:
        if threshold is None:
            return "of the predicted instances"
        return "of the predicted labels" if masks else f"best at threshold {threshold:g}"

    classes = f", mean over {report.num_classes - 1} classes" if report.num_classes > 2 else ""
    cut = "of the predicted labels" if masks else "threshold 0.5"
    hard = "most probable class" if report.num_classes > 2 else cut
    summary = Table(title=f"{report.num_slices} slice{'s' if report.num_slices > 1 else ''}", title_justify="left")
    summary.add_column("score")
    summary.add_column("value", justify="right")
    summary.add_column("")
    summary.add_row("pixel error", number(report.pixel_error), f"lower is better, {at(report.pixel_threshold)}")
    summary.add_row("Rand error", number(report.rand_error), at(report.rand_threshold))
    sides = f"precision {report.rand_precision:.4f}, recall {report.rand_recall:.4f}"
    summary.add_row("", "", sides)
    summary.add_row("warping error", f"{report.warping_error:.6f}", cut)
    summary.add_section()
    summary.add_row("Dice", number(report.dice), f"higher is better, {hard}{classes}")
    summary.add_row("IoU", number(report.iou), f"{hard}{classes}")
    summary.add_row("V_Rand", number(report.v_rand), "borders thinned")
    summary.add_row("V_Info", number(report.v_info), "borders thinned")
    if report.seg is not None:
        summary.add_row("SEG", number(report.seg), "instances")
    if report.average_precision is not None and report.ious is not None:
        for iou, value in zip(report.ious, report.average_precision, strict=True):
            summary.add_row(f"average precision {iou:g}", number(value), f"objects with an IoU of at least {iou:g}")
        summary.add_row("splits, merges", f"{report.splits}, {report.merges}", "of objects, lower is better")
    summary.add_section()
    summary.add_row("VI split, merge", f"{report.vi_split:.4f}, {report.vi_merge:.4f}", "bits, lower is better")
    summary.add_row("adapted Rand error", number(report.adapted_rand_error), "of CREMI, lower is better")
    if not masks:
        summary.add_section()
        summary.add_row("best threshold", number(report.best_threshold), f"foreground Dice {report.best_dice:.4f}")
    console.print(summary)

    if report.num_classes > 2:
        by_class = Table(title="by class", title_justify="left")
        for heading in ("class", "Dice", "IoU"):
            by_class.add_column(heading, justify="right")
        for k, values in enumerate(zip(report.dice_per_class, report.iou_per_class, strict=True)):
            by_class.add_row(str(k), *map(number, values))
        console.print(by_class)

    rows, title = report.per_slice, "by slice"
    if len(rows) > max_slices:
        rows = sorted(rows, key=lambda row: -1 if math.isnan(row.rand_error) else row.rand_error, reverse=True)[
            :max_slices
        ]
        title = f"the {max_slices} slices with the largest Rand error"
    table = Table(title=title, title_justify="left")
    for heading in ("slice", "pixel error", "Rand error", "Dice", "IoU"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            escape(row.name), *(number(value) for value in (row.pixel_error, row.rand_error, row.dice, row.iou))
        )
    console.print(table)
