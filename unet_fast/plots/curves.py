"""Training curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_fast.errors import InputError
from unet_fast.plots._canvas import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Iterable[Mapping[str, Any]]

HEAD = "loss_head_"
LEGEND: dict[str, Any] = {"loc": "best", "edgecolor": "none", "framealpha": 0.8}
SCORES = {"val_pixel_error": ("pixel error", GREEN, "s"), "val_rand_error": ("Rand error", VERMILLION, "D")}


def _read_rows(source: str | os.PathLike[str] | Rows) -> list[Mapping[str, Any]]:
    if not isinstance(source, str | os.PathLike):
        return list(source)
    with Path(source).open(newline="") as file:
        return list(csv.DictReader(file))


def _column(rows: list[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    values = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        value = row.get(key)
        if value is None or value == "":
            continue
        try:
            values[index] = float(value)
        except (TypeError, ValueError):
            raise InputError(f"row {index + 1} has {value!r} under {key!r}, expected a number or nothing") from None
    return values


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean over about a fiftieth of the curve: without lag, and at the ends over the points that exist."""
    from scipy.ndimage import gaussian_filter1d

    width = max(len(values) / 50, 1)
    weight = gaussian_filter1d(np.ones(len(values)), width, mode="constant")
    return gaussian_filter1d(values, width, mode="constant") / weight


def loss_curve(source: str | os.PathLike[str] | Rows, out: str | os.PathLike[str]) -> Path:
    """Losses, validation scores and learning rate over the steps of a run, as a PNG 1,000 pixels wide.

    Args:
        source: path of a CSV file with a header, or rows as mappings; keys ``step``, ``seconds``, ``loss``, ``lr``,
            ``val_loss``, ``val_pixel_error``, ``val_rand_error``, and ``loss_head_1`` and so on for the heads of a
            network with several. Only ``step`` is required; what is missing or empty is left out, and so is a
            panel with nothing to show.
        out: path of the PNG.

    Returns:
        ``out`` as a path.

    Raises:
        InputError: no row with a step and a loss, or an entry that is not a number.
        OSError: ``source`` cannot be read or ``out`` cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    rows = _read_rows(source)
    step = _column(rows, "step")
    heads = sorted({key for row in rows for key in row if key.startswith(HEAD)}, key=lambda key: (len(key), key))
    columns = {key: _column(rows, key) for key in ("seconds", "loss", "lr", "val_loss", *SCORES, *heads)}

    def points(key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        kept = np.isfinite(step) & np.isfinite(columns[key])
        order = np.argsort(step[kept], kind="stable")
        return step[kept][order], columns[key][kept][order]

    series = {key: points(key) for key in columns}
    drawn = {key for key, (x, _) in series.items() if x.size}
    if not drawn & {"loss", "val_loss"}:
        named = source if isinstance(source, str | os.PathLike) else "the list of rows"
        raise InputError(f"{named} holds no row with a step and a loss ({len(rows)} rows); train at least one step")

    scores = [key for key in SCORES if key in drawn]
    heads = [key for key in heads if key in drawn]
    heights = {
        "loss": 340,
        **({"heads": 250} if heads else {}),
        **({"scores": 250} if scores else {}),
        **({"lr": 120} if "lr" in drawn else {}),
    }
    figure = new_figure(1000, sum(heights.values()) + 70)
    grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=list(heights.values()), squeeze=False)
    panels: dict[str, Axes] = dict(zip(heights, grid[:, 0], strict=True))

    axes = panels["loss"]
    if "loss" in drawn:
        x, y = series["loss"]
        many = x.size > 30
        axes.plot(
            x, y, color=BLUE, alpha=0.3 if many else 1, linewidth=0.8 if many else 1.6, marker="" if many else "."
        )
        if many:
            axes.plot(x, smooth(y), color=BLUE, linewidth=1.8)
        axes.lines[-1].set_label("training, smoothed" if many else "training")
    if "val_loss" in drawn:
        x, y = series["val_loss"]
        axes.plot(x, y, color=ORANGE, marker="o", markersize=5, linewidth=1.5, label="validation")
        _mark_best(axes, x, y, ORANGE)
    _scale_losses(axes, np.concatenate([series[key][1] for key in ("loss", "val_loss") if key in drawn]))
    axes.set_ylabel("loss")
    axes.legend(**LEGEND)

    if heads:
        _draw_heads(panels["heads"], {key.removeprefix(HEAD): series[key] for key in heads})
    for key in scores:
        name, colour, marker = SCORES[key]
        x, y = series[key]
        best = _mark_best(panels["scores"], x, y, colour)
        label = f"{name}, best {y[best]:.4f} at step {x[best]:,.0f}"
        panels["scores"].plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.5, label=label)
    if scores:
        # a first validation before anything is learnt must not flatten the rest
        highest = max(min(float(np.max(y)), 3 * float(np.median(y))) for _, y in (series[key] for key in scores))
        panels["scores"].set_ylim(0, 1.1 * highest if highest > 0 else 1)
        panels["scores"].set_ylabel("validation error")
        panels["scores"].legend(**LEGEND)
    if "lr" in drawn:
        panels["lr"].plot(*series["lr"], color=GREY, linewidth=1.5)
        panels["lr"].set_ylim(bottom=0)
        panels["lr"].set_ylabel("learning rate")
        panels["lr"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))

    for axes in panels.values():
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title = f"{np.nanmax(step):,.0f} steps"
    if "seconds" in drawn:
        seconds = float(series["seconds"][1].max())
        title += f" in {seconds:.0f} s" if seconds < 100 else f" in {seconds / 60:.1f} min"
    figure.suptitle(plain(title), fontsize=12)
    return save(figure, out)


def _draw_heads(axes: Axes, series: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    """The smoothed loss of each head, by its number; the first is the main one."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.9, len(series)))
    for (number, (x, y)), colour in zip(series.items(), colours, strict=True):
        many = x.size > 30
        label = f"head {number}" + (", the main one" if number == "1" else "")
        axes.plot(x, smooth(y) if many else y, color=colour, linewidth=1.5, marker="" if many else ".", label=label)
    _scale_losses(axes, np.concatenate([y for _, y in series.values()]))
    axes.set_ylabel("loss of each head")
    axes.legend(**LEGEND)


def _mark_best(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str) -> int:
    """A ring around the lowest point; returns its index."""
    best = int(np.argmin(y))
    axes.plot(x[best], y[best], "o", markersize=13, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8)
    return best


def _scale_losses(axes: Axes, losses: NDArray[np.float64]) -> None:
    """Limits that ignore single spikes; a logarithmic axis, with plain numbers, where the loss falls by a large factor."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = (float(value) for value in np.quantile(losses, (0.002, 0.998)))
    if low > 0 and high > 8 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high > low:
        axes.set_ylim(min(low, 0) if low < high / 3 else None, high + 0.1 * (high - low))
