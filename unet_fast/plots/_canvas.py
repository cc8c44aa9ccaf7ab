"""Figures, colours and the helpers that every picture needs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_fast.errors import InputError
from unet_fast.files import atomic_path
from unet_fast.metrics._inputs import as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
LABEL_COLOURS = (ORANGE, SKY, GREEN, YELLOW, VERMILLION, PURPLE)  # without blue, which is hard to see on dark tissue

DPI = 100
PANEL = 330  # pixels of a picture panel along its longer side


def rgb(colour: str) -> tuple[int, int, int]:
    """``"#RRGGBB"`` as three numbers 0..255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of ``width`` x ``height`` pixels with an Agg canvas of its own; ``layout`` as of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(round(width) / DPI, round(height) / DPI), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, out: str | os.PathLike[str]) -> Path:
    """Write ``figure`` as a PNG, all or nothing."""
    if Path(out).suffix.lower() != ".png":
        raise InputError(f"the picture is written as PNG, but its name is {os.fspath(out)!r}; end it in .png")
    with atomic_path(out) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(out)


def plain(text: str) -> str:
    """``text`` as it is drawn, letter by letter: a ``$`` starts no formula, and what is not a character becomes an escape."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace("$", "\\$")


def panel_size(height: int, width: int) -> tuple[float, float]:
    """Height and width in pixels of a panel for images of this shape, neither less than a quarter of the other."""
    scale = PANEL / max(height, width)
    return max(height * scale, PANEL / 4), max(width * scale, PANEL / 4)


def as_pictures(name: str, images: ArrayLike) -> NDArray[Any]:
    """Images ``(N, H, W)`` or ``(N, C, H, W)`` as ``(N, H, W, 3)`` in [0, 1], each stretched to its 1..99 percentiles.

    One channel is grey, three are RGB; of any other number the mean is shown.
    """
    array = as_array(name, images)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}, expected a non-empty (N, C, H, W) or (N, H, W)")
    array = array.astype(np.float32)
    if array.shape[1] != 3:
        array = np.repeat(array.mean(axis=1, keepdims=True), 3, axis=1)
    low, high = np.nanpercentile(array, (1, 99), axis=(1, 2, 3), keepdims=True)
    span = np.where(high > low, high - low, 1)
    return np.nan_to_num(np.clip((array - low) / span, 0, 1)).transpose(0, 2, 3, 1)


def line_width(shape: tuple[int, int]) -> int:
    """Width in image pixels of a line that stays visible when an image of this shape shrinks to a panel."""
    return max(1, round(1.75 * max(shape) / PANEL))


def draw_contours(picture: NDArray[Any], labels: NDArray[Any], colours: tuple[str, ...]) -> NDArray[Any]:
    """A copy of ``picture`` (H, W, 3) with the inner boundary of each label but 0, coloured by label."""
    from scipy import ndimage

    # a pixel belongs to the line of its label when another label lies within the width of the line
    size = 2 * line_width((labels.shape[0], labels.shape[1])) + 1
    labels = labels.astype(np.int64)
    edge = (ndimage.maximum_filter(labels, size) != labels) | (ndimage.minimum_filter(labels, size) != labels)
    edge &= labels != 0
    palette = np.array([rgb(colour) for colour in colours], dtype=np.float32) / 255
    out = picture.copy()
    out[edge] = palette[(labels[edge] - 1) % len(colours)]
    return out


def show(axes: Axes, picture: NDArray[Any], title: str = "", **options: Any) -> Any:
    """An image without ticks, pixels kept square, with a thin frame."""
    drawn = axes.imshow(picture, interpolation=options.pop("interpolation", "antialiased"), **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#999999")
        spine.set_linewidth(0.6)
    if title:
        axes.set_title(plain(title), fontsize=10)
    return drawn
