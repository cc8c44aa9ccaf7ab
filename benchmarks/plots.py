"""Pictures of result files: bars for cases, lines over the size for sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.record import machine, milliseconds
from unet_fast.plots._canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW, new_figure, save

COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)


def draw(name: str, result: dict[str, Any], path: Path) -> Path:
    """Write the picture of one result (see ``Suite.finish``); returns its path."""
    rows = result["rows"]
    return (_sweep if rows and all(row.get("side") for row in rows) else _bars)(name, result, path)


def bar_figure(height: int) -> tuple[Any, Any]:
    """A figure and its axes for horizontal bars, without a frame above and to the right."""
    figure = new_figure(1100, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def heading(axes: Any, position: float, text: str, size: float) -> None:
    """The name of a group of bars, at the left end of its row."""
    axes.text(0.0, position, f" {text}", transform=axes.get_yaxis_transform(), va="center", weight="bold", size=size)


def _caption(result: dict[str, Any]) -> str:
    return f"commit {result['commit']}, {machine(result)}, torch {result['torch']}"


def _bars(name: str, result: dict[str, Any], path: Path) -> Path:
    """Time of every candidate, logarithmic, with quartiles; ours in blue."""
    rows = result["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = bar_figure(90 + 20 * len(rows) + 26 * len(cases))
    position, ticks, labels = 0.0, [], []
    for case in cases:
        heading(axes, position, case, size=8)
        position += 1
        for row in (r for r in rows if r["case"] == case):
            spread = [[max(row["median"] - row["low"], 0)], [max(row["high"] - row["median"], 0)]]
            axes.barh(
                position,
                row["median"],
                0.7,
                color=BLUE if row["role"] == "ours" else GREY,
                xerr=spread,
                error_kw={"lw": 1},
            )
            share = "" if row.get("share") is None else f", {row['share']:.0%} of the limit"
            text = f" {milliseconds(row['median'])} ms ({row['ratio']:.2f}x{share})"
            axes.text(row["high"], position, text, va="center", size=7)
            ticks.append(position)
            labels.append(row["candidate"])
            position += 1
        position += 0.3
    axes.set_yticks(ticks, labels, size=7)
    axes.set_ylim(position - 0.5, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(right=8 * max(row["high"] for row in rows))
    axes.set_xlabel("ms, median and quartiles; in brackets the ratio to the first of each case")
    axes.set_title(f"{name}\n{_caption(result)}", size=9)
    return save(figure, path)


def _sweep(name: str, result: dict[str, Any], path: Path) -> Path:
    """Nanoseconds a pixel over the number of pixels a call, a line for each candidate and batch size."""
    rows = result["rows"]
    figure = new_figure(1000, 520)
    axes = figure.add_subplot()
    candidates = list(dict.fromkeys(row["candidate"] for row in rows))
    batches = sorted({row["images"] for row in rows})
    for number, candidate in enumerate(candidates):
        for batch, line in zip(batches, ("-", "--", "-.", ":"), strict=False):
            points = [
                (row["side"], row["median"] * 1e6 / (batch * row["side"] ** 2))
                for row in rows
                if row["candidate"] == candidate and row["images"] == batch
            ]
            if points:
                x, y = zip(*sorted(points), strict=True)
                label = f"{candidate}, batch {batch}"
                axes.plot(x, y, line, marker="o", ms=3, color=COLOURS[number % len(COLOURS)], label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sides = sorted({row["side"] for row in rows})
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.set_xlabel("side of the images in pixels")
    axes.set_ylabel("ns a pixel")
    axes.set_title(f"{name}\n{_caption(result)}", size=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return save(figure, path)
