"""Predictions beside the truth: where a network is right, and how it is wrong elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast import metrics
from unet_fast.errors import InputError
from unet_fast.metrics._inputs import as_array, check_labels, check_probabilities
from unet_fast.plots._canvas import (
    BLUE,
    ORANGE,
    PURPLE,
    VERMILLION,
    as_pictures,
    draw_contours,
    new_figure,
    panel_size,
    plain,
    rgb,
    save,
    show,
)

# error map: what was found, and the three ways to be wrong
ERROR_COLOURS = {"false positive": VERMILLION, "false negative": BLUE, "wrong class": PURPLE}
_RIGHT_FOREGROUND, _RIGHT_BACKGROUND, _NOT_COUNTED = 0.93, 0.55, 0.2


class _Slices:
    """Checked arrays of one picture: images or None, truth, foreground probability and predicted class.

    Where pixels are ignored, truth and prediction are background, so that no score counts them either.
    """

    def __init__(
        self,
        images: ArrayLike | None,
        truth: ArrayLike,
        probabilities: ArrayLike,
        threshold: float,
        ignored: ArrayLike | None,
    ) -> None:
        self.truth = check_labels("truth", as_array("truth", truth))
        array = as_array("probabilities", probabilities)
        if array.dtype.kind == "b":
            array = array.astype(np.float32)
        if self.truth.ndim != 3 or self.truth.size == 0 or array.ndim not in (3, 4):
            raise InputError(
                f"truth has shape {self.truth.shape} and probabilities {array.shape}, "
                "expected a non-empty (N, H, W) and (N, H, W) or (N, K, H, W)"
            )
        if array.shape[:1] + array.shape[-2:] != self.truth.shape:
            raise InputError(
                f"probabilities have shape {array.shape} but truth has {self.truth.shape}; give the same slices of both"
            )
        array = check_probabilities("probabilities", array)
        classes = array.shape[1] if array.ndim == 4 else 1
        self.multiclass = classes > 2
        self.errors_title = "errors" if self.multiclass else f"errors at threshold {threshold:g}"
        if array.ndim == 3:
            self.foreground = array
        else:
            self.foreground = array[:, 0] if classes == 1 else 1 - array[:, 0]
        self.predicted = array.argmax(axis=1) if self.multiclass else (self.foreground > threshold).astype(np.int64)
        self.ignored = None if ignored is None else as_array("ignored", ignored) != 0
        if self.ignored is not None:
            if self.ignored.shape != self.truth.shape:
                raise InputError(
                    f"ignored has shape {self.ignored.shape} but truth has {self.truth.shape}; give the same slices"
                )
            self.truth, self.predicted = (np.where(self.ignored, 0, each) for each in (self.truth, self.predicted))
        self.images = None if images is None else as_array("images", images)
        if self.images is not None and (self.images.shape[:1] + self.images.shape[-2:] != self.truth.shape):
            raise InputError(
                f"images have shape {self.images.shape} but truth has {self.truth.shape}; give the same slices of both"
            )

    def picture(self, n: int) -> NDArray[Any]:
        """The image of slice ``n`` as (H, W, 3)."""
        assert self.images is not None
        return as_pictures("images", self.images[n : n + 1])[0]

    def errors(self, n: int) -> NDArray[np.float32]:
        """The error map of slice ``n``, (H, W, 3)."""
        true, found = self.truth[n] != 0, self.predicted[n] != 0
        out = np.repeat(np.where(true, _RIGHT_FOREGROUND, _RIGHT_BACKGROUND)[..., None], 3, axis=-1).astype(np.float32)
        wrong = {"false positive": found & ~true, "false negative": true & ~found}
        if self.multiclass:
            wrong["wrong class"] = true & found & (self.truth[n] != self.predicted[n])
        for kind, where in wrong.items():
            out[where] = np.array(rgb(ERROR_COLOURS[kind])) / 255
        if self.ignored is not None:
            out[self.ignored[n]] = _NOT_COUNTED
        return out

    def marked_truth(self, n: int) -> tuple[NDArray[Any], str]:
        """The truth of slice ``n`` drawn into its image, or by itself without one; with a title."""
        if self.images is not None:
            return draw_contours(self.picture(n), self.truth[n], (ORANGE,)), "truth (orange contours)"
        grey = np.where(self.truth[n] != 0, _RIGHT_FOREGROUND, _RIGHT_BACKGROUND).astype(np.float32)
        return draw_contours(np.repeat(grey[..., None], 3, axis=-1), self.truth[n], (ORANGE,)), "truth"


def _draw(slices: _Slices, rows: Sequence[int], headings: Sequence[str], out: str | os.PathLike[str]) -> Path:
    from matplotlib.patches import Patch

    columns = 3 if slices.images is None else 4
    height, width = panel_size(*slices.truth.shape[1:])
    figure = new_figure(columns * (width + 12) + 75, len(rows) * (height + 54) + 75)
    bands = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for band, n, heading in zip(bands, rows, headings, strict=True):
        band.suptitle(plain(heading), fontsize=11, x=0.01, ha="left", fontweight="bold")
        axes = list(band.subplots(1, columns, squeeze=False)[0])
        if slices.images is not None:
            show(axes.pop(0), slices.picture(n), "image")
        show(axes[0], *slices.marked_truth(n))
        drawn = show(axes[1], slices.foreground[n], "probability of foreground", cmap="cividis", vmin=0, vmax=1)
        band.colorbar(drawn, ax=axes[1], fraction=0.045, pad=0.02, ticks=[0, 0.5, 1])
        show(axes[2], slices.errors(n), slices.errors_title, interpolation="nearest")
    kinds = list(ERROR_COLOURS) if slices.multiclass else list(ERROR_COLOURS)[:2]
    handles = [Patch(color=ERROR_COLOURS[kind], label=kind) for kind in kinds]
    handles.append(Patch(facecolor=str(_RIGHT_FOREGROUND), edgecolor="#999999", label="right: foreground"))
    handles.append(Patch(facecolor=str(_RIGHT_BACKGROUND), edgecolor="#999999", label="right: background"))
    if slices.ignored is not None:
        handles.append(Patch(facecolor=str(_NOT_COUNTED), edgecolor="#999999", label="not counted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    return save(figure, out)


def overlay(
    images: ArrayLike | None,
    truth: ArrayLike,
    probabilities: ArrayLike,
    out: str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    names: Sequence[str] | None = None,
    max_slices: int = 5,
    ignored: ArrayLike | None = None,
) -> Path:
    """One row per slice: image, truth as contours, probability, and the map of errors, with the scores of the slice.

    Args:
        images: ``(N, C, H, W)`` or ``(N, H, W)``, any scale; None leaves the column out.
        truth: labels ``(N, H, W)``; 0 is background.
        probabilities: of the foreground ``(N, H, W)``, or of K classes ``(N, K, H, W)``; floating point in [0, 1].
        out: path of the PNG.
        threshold: foreground is ``probability > threshold`` (K > 2 classes: the most probable class counts).
        names: one per slice, default ``slice 0``, ``slice 1``, ...
        max_slices: of a longer stack, this many evenly spaced slices are shown.
        ignored: boolean, the shape of ``truth``: pixels that no score counts, marked as such in the map of errors.

    Returns:
        ``out`` as a path.

    Raises:
        InputError: shapes that do not fit, NaN, or values outside [0, 1].
        OSError: ``out`` cannot be written.
    """
    slices = _Slices(images, truth, probabilities, threshold, ignored)
    n = len(slices.truth)
    rows = [int(k) for k in np.unique(np.linspace(0, n - 1, min(n, max_slices)).round())]
    headings = []
    for k in rows:
        mask, true = slices.predicted[k] != 0, slices.truth[k]
        pixel = 1 - metrics.dice(mask, true != 0)
        rand = metrics.rand_error(mask, true, kind="classes" if slices.multiclass else "auto")
        name = names[k] if names is not None else f"slice {k}"
        at = "" if slices.multiclass else f" at threshold {threshold:g}"
        headings.append(f"{name}{at}:  pixel error {pixel:.4f},  Rand error {rand:.4f}")
    return _draw(slices, rows, headings, out)


def worst_best(
    images: ArrayLike | None,
    truth: ArrayLike,
    probabilities: ArrayLike,
    scores: Mapping[str, ArrayLike],
    out: str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    names: Sequence[str] | None = None,
    count: int = 2,
    ignored: ArrayLike | None = None,
) -> Path:
    """The ``count`` worst and the ``count`` best slices, drawn as in :func:`overlay`, worst first.

    Args:
        images, truth, probabilities, out, threshold, names, ignored: as in :func:`overlay`.
        scores: errors by name, one per slice each: ``{"Rand error": (N,), ...}``, lower is better. The first one ranks,
            all are printed; slices whose first score is NaN are not ranked (all are, when it is NaN everywhere).

    Raises:
        InputError: as :func:`overlay`; scores of another length, or none.
    """
    slices = _Slices(images, truth, probabilities, threshold, ignored)
    errors = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    n = len(slices.truth)
    for name, values in errors.items():
        if values.shape != (n,):
            raise InputError(f"scores of {name!r} have shape {values.shape}, expected one per slice, ({n},)")
    if not errors:
        raise InputError("scores is empty, expected at least one list of errors to rank the slices by")
    ranking = next(iter(errors.values()))
    ranked = np.flatnonzero(np.isfinite(ranking))
    if ranked.size == 0:
        ranked = np.arange(n)
    order = ranked[np.argsort(-ranking[ranked], kind="stable")]
    count = min(count, (order.size + 1) // 2)
    worst, best = order[:count], order[max(count, order.size - count) :]
    headings = []
    for place, k in [("worst", k) for k in worst] + [("best", k) for k in best]:
        name = names[k] if names is not None else f"slice {k}"
        shown = ",  ".join(f"{score} {values[k]:.4f}" for score, values in errors.items())
        headings.append(f"{place}: {name},  {shown}" if n > 1 else f"{name}:  {shown}")
    return _draw(slices, [int(k) for k in (*worst, *best)], headings, out)
