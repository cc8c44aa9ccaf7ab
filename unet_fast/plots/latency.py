"""The picture of a latency run: who is fast, how steadily, and what a larger batch brings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_fast.errors import InputError
from unet_fast.plots._canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, new_figure, save

# torch with this package's kernels has the strongest colour
COLOURS = {"torch": BLUE, "openvino": ORANGE, "onnxruntime": GREEN, "compile": PURPLE, "cuda-graph": VERMILLION}
MARKERS = {"float32": "o", "bfloat16": "^"}


def latency_picture(
    conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]
) -> Path:
    """Two panels, as a PNG: the spread of single calls by engine, and latency against throughput over batches.

    Args:
        conditions: ``machine``, ``parameters`` and ``network`` of a latency run.
        rows: its rows, see :class:`unet_fast.deploy.latency.Row`; those that failed are left out.
        out: path of the PNG.

    Raises:
        InputError: no row has times, or the name does not end in .png.
    """
    good = [row for row in rows if row["milliseconds"]]
    if not good:
        raise InputError("no engine ran, so there is nothing to draw; see the reasons in the table")
    first = good[0]
    shown = [row for row in good if all(row[name] == first[name] for name in ("tile", "batch", "threads"))]
    shown.sort(key=lambda row: row["p50"])
    figure = new_figure(1200, max(420, 150 + 62 * len(shown)))
    name = conditions["network"].get("name", "network")
    figure.suptitle(
        f"{name}, {conditions['parameters'] / 1e6:.2f} M parameters, on {conditions['machine']}", fontsize=11
    )
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _spread(left, shown)
    tiles = sorted({row["tile"] for row in good})
    _trade(right, good, tiles)
    return save(figure, out)


def _label(row: Mapping[str, Any]) -> str:
    return row["engine"] + ("" if row["precision"] == "float32" else f" {row['precision']}")


def _spread(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    """One line an engine, the fastest on top: every call, the median, p90 and p99."""
    rng = np.random.default_rng(0)
    for place, row in enumerate(rows):
        colour = COLOURS.get(row["engine"], GREY)
        times = np.asarray(row["milliseconds"])
        axes.barh(place, row["p50"], height=0.56, color=colour, alpha=0.25, zorder=1)
        axes.scatter(
            times, place + rng.uniform(-0.2, 0.2, len(times)), s=7, color=colour, alpha=0.5, zorder=2, linewidths=0
        )
        axes.plot([row["p50"]] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=3, zorder=3)
        axes.plot([row["p99"]] * 2, [place - 0.18, place + 0.18], color="black", linewidth=1.2, zorder=3)
        text = f"{row['p50']:.1f} ms   (p90 {row['p90']:.1f}, p99 {row['p99']:.1f})"
        axes.annotate(
            text,
            (max(times.max(), row["p99"]), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    highest = max(max(row["milliseconds"]) for row in rows)
    axes.set_xlim(0, 1.75 * highest)  # with room for the figures behind the longest bar
    first = rows[0]
    axes.set_xlabel("milliseconds a call; less is better")
    axes.set_title(
        f"Latency: tile {first['tile']}, batch {first['batch']}, {first['threads']} thread{'s' if first['threads'] > 1 else ''}\n"
        "bar and thick line: median; dots: single calls; black tick: p99",
        fontsize=9.5,
    )
    axes.spines[["top", "right"]].set_visible(False)


def _trade(axes: Any, rows: list[Mapping[str, Any]], tiles: list[int]) -> None:
    """Latency against pixels a second; a line joins the batches of an engine at one tile."""
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["engine"], row["precision"], row["tile"], row["threads"]), []).append(row)
    axes.set_xscale("log")
    axes.set_yscale("log")
    named: set[str] = set()
    named_tiles = next(iter(lines))[:2]  # whose points carry the sizes of the tiles
    for (engine, precision, tile, threads), members in lines.items():
        members.sort(key=lambda row: row["batch"])
        x = [row["p50"] for row in members]
        y = [row["images_a_second"] * row["tile"] ** 2 / 1e6 for row in members]
        label = _label(members[0])
        axes.plot(
            x, y, marker=MARKERS[precision], color=COLOURS.get(engine, SKY), markersize=4 + 3 * tiles.index(tile) / max(1, len(tiles)),
            linestyle="-" if precision == "float32" else "--", linewidth=1.2, label=None if label in named else label,
            alpha=0.9,
        )  # fmt: skip
        named.add(label)
        end = members[-1]
        suffix = f", {threads} thr." if len({row["threads"] for row in rows}) > 1 else ""
        if (engine, precision) == named_tiles:
            axes.annotate(
                f"tile {tile}{suffix}",
                (x[0], y[0]),
                xytext=(0, -13),
                textcoords="offset points",
                fontsize=7.5,
                ha="center",
                color=GREY,
            )
        if len(members) > 1:
            axes.annotate(
                f"batch {end['batch']}",
                (x[-1], y[-1]),
                xytext=(5, -3),
                textcoords="offset points",
                fontsize=7.5,
                color=GREY,
            )
    axes.set_xlabel("median milliseconds a call (log scale)")
    axes.set_ylabel("megapixels of output a second (log scale)")
    axes.set_title(
        "Latency against throughput: better is up and to the left\na line joins the batches of one engine and tile",
        fontsize=9.5,
    )
    axes.legend(fontsize=8, loc="best", framealpha=0.8)
    axes.grid(True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.18)
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)


def _plain_ticks(axis: Any) -> None:
    """Numbers as people write them, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
