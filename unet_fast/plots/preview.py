"""What the network sees: augmented tiles, their labels and their weight maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.labels import IGNORED
from unet_fast.metrics._inputs import as_array, check_labels, is_mask
from unet_fast.plots._canvas import (
    LABEL_COLOURS,
    VERMILLION,
    as_pictures,
    draw_contours,
    new_figure,
    panel_size,
    save,
    show,
)

MAX_ROWS = 6
GAP, TITLES = 12, 30  # pixels between two panels, and above the first row


def grid_image(size: tuple[int, int], spacing: int = 24) -> NDArray[np.float32]:
    """White lines on black (H, W), ``spacing`` pixels apart: warp them along with a tile to see the deformation."""
    if spacing < 2:
        raise InputError(f"spacing is {spacing}, expected at least 2 pixels between the lines of the grid")
    rows, columns = (np.arange(length) % spacing < max(1, spacing // 12) for length in size)
    return (rows[:, None] | columns[None, :]).astype(np.float32)


def preview(
    images: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None,
    out: str | os.PathLike[str],
    *,
    grids: ArrayLike | None = None,
) -> Path:
    """One row per tile: input, labelled part with contours, weight map, the deformed grid.

    Where the input is larger than the labels (valid convolutions), the first column frames the output.

    Args:
        images: augmented inputs ``(N, C, H, W)`` or ``(N, H, W)``; at most 6 are drawn.
        labels: ``(N, h, w)`` integer, h <= H, w <= W, centred in the inputs. Contours are coloured by label.
        weights: ``(N, h, w)`` or None. All maps share one colour scale.
        out: path of the PNG.
        grids: :func:`grid_image` warped like the inputs, ``(N, H, W)`` or ``(N, 1, H, W)``.

    Returns:
        ``out`` as a path.

    Raises:
        InputError: shapes that do not fit, or nothing to draw.
        OSError: ``out`` cannot be written.
    """
    pictures = as_pictures("images", images)[:MAX_ROWS]
    maps = check_labels("labels", as_array("labels", labels), ignore_index=IGNORED)[:MAX_ROWS]
    space = pictures.shape[:3]
    if maps.ndim != 3 or len(maps) != len(pictures) or maps.shape[1] > space[1] or maps.shape[2] > space[2]:
        raise InputError(
            f"labels have shape {maps.shape} for images of {space} (N, H, W), expected (N, h, w), at most as large"
        )
    size = maps.shape[1:]
    top, left = (pictures.shape[1] - size[0]) // 2, (pictures.shape[2] - size[1]) // 2
    inner = pictures[:, top : top + size[0], left : left + size[1]]

    # a mask has one colour, whether its foreground is 1 or 255
    colours = LABEL_COLOURS[:1] if is_mask(maps) else LABEL_COLOURS

    columns = ["input", "labels"]
    weight_maps, high = None, 1.0
    if weights is not None:
        weight_maps = as_array("weights", weights)[:MAX_ROWS]
        if weight_maps.shape != maps.shape:
            raise InputError(f"weights have shape {weight_maps.shape}, expected that of the labels, {maps.shape}")
        high = max(float(weight_maps.max()), 1e-6)
        columns.append("weights")
    grid_pictures = None
    if grids is not None:
        grid_pictures = as_pictures("grids", grids)[:MAX_ROWS]
        columns.append("deformation")

    height, width = panel_size(*pictures.shape[1:3])
    bar = 90 if weight_maps is not None else 0
    # the places are known: a layout that tries them out would take longer than the drawing
    total_width, total_height = len(columns) * (width + GAP) + bar, len(maps) * (height + GAP) + TITLES
    figure = new_figure(total_width, total_height, layout=None)

    def panel(row: int, column: int) -> Any:
        left = GAP / 2 + column * (width + GAP) + (bar if column > 2 else 0)
        above = TITLES + row * (height + GAP)
        place = (left, total_height - above - height, width, height)
        return figure.add_axes(_shares(place, total_width, total_height))

    drawn: Any = None
    for row in range(len(maps)):
        axes = [panel(row, column) for column in range(len(columns))]
        titles = columns if row == 0 else [""] * len(columns)
        show(axes[0], pictures[row], titles[0])
        if size != pictures.shape[1:3]:
            _draw_frame(axes[0], top, left, size)
        show(axes[1], draw_contours(inner[row], np.maximum(maps[row].astype(np.int64), 0), colours), titles[1])
        if weight_maps is not None:
            drawn = show(axes[2], weight_maps[row], titles[2], cmap="magma", vmin=0, vmax=high)
        if grid_pictures is not None:
            show(axes[-1], grid_pictures[row], titles[-1])
            if size != grid_pictures.shape[1:3]:
                _draw_frame(axes[-1], top, left, size)
    if drawn is not None:
        beside = (3 * (width + GAP), GAP / 2, 14, total_height - TITLES - GAP / 2)
        place = figure.add_axes(_shares(beside, total_width, total_height))
        figure.colorbar(drawn, cax=place, label="weight of a pixel in the loss")
    return save(figure, out)


def _shares(place: tuple[float, float, float, float], width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width and height in pixels as parts of a figure."""
    return place[0] / width, place[1] / height, place[2] / width, place[3] / height


def _draw_frame(axes: Any, top: int, left: int, size: tuple[int, ...]) -> None:
    from matplotlib.patches import Rectangle

    frame = Rectangle((left - 0.5, top - 0.5), size[1], size[0], fill=False, edgecolor=VERMILLION, linewidth=1.8)
    axes.add_patch(frame)
    axes.text(
        left + 0.02 * size[1],
        top + 0.02 * size[0],
        f"output {size[0]}x{size[1]}",
        color="white",
        fontsize=8,
        va="top",
        bbox={"facecolor": VERMILLION, "edgecolor": "none", "pad": 1.5},
    )
