"""All benchmarks of a machine in one table and one picture: what is ours against the fastest that a user could pick instead."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plots import bar_figure, heading
from benchmarks.record import commits, machine, milliseconds
from unet_fast.plots._canvas import BLUE, VERMILLION, save

# which have no peer for each case, or no times
LEFT_OUT = ("dispatch", "family", "conv3x3_memory", "convolution_choice")


@dataclass(frozen=True)
class Comparison:
    """Our first candidate of a case, and the fastest peer; times in ms."""

    benchmark: str
    case: str
    ours: float
    peer: str
    theirs: float


def comparisons(folder: Path) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """One for each case that has a peer, and the result files that they are from."""
    found, results = [], []
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_sizes") or path.stem in LEFT_OUT or ".quick" in path.name:
            continue
        result = json.loads(path.read_text())
        results.append(result)
        for case in dict.fromkeys(row["case"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["case"] == case]
            ours = [row for row in rows if row["role"] == "ours"]
            peers = [row for row in rows if row["role"] == "peer"]
            if ours and peers:
                best = min(peers, key=lambda row: row["median"])
                found.append(Comparison(path.stem, case, ours[0]["median"], best["candidate"], best["median"]))
    return found, results


def conditions(results: list[dict[str, Any]]) -> str:
    """Commits, machines and versions of the results: a sentence a machine."""
    measured: dict[str, set[str]] = {}
    for one in results:
        place = f"{machine(one)}, torch {one['torch']}, Python {one['python']}"
        measured.setdefault(place, set()).add(one["commit"])
    return "\n".join(f"{commits(of)}, {place}." for place, of in measured.items())


def table(folder: Path) -> str:
    """One line a case, as Markdown."""
    found, results = comparisons(folder)
    lines = ["| benchmark | case | ours, ms | fastest peer | its ms | ours / peer |", "|---|---|---:|---|---:|---:|"]
    previous = ""
    for c in found:
        name = c.benchmark if c.benchmark != previous else ""
        previous = c.benchmark
        ours, theirs = milliseconds(c.ours), milliseconds(c.theirs)
        lines.append(f"| {name} | {c.case} | {ours} | {c.peer} | {theirs} | {c.ours / c.theirs:.2f} |")
    return "\n".join([*lines, "", conditions(results)]) + "\n"


def draw(folder: Path) -> Path:
    """How many times as fast as the fastest peer, a bar a case; slower ones in another colour."""
    found, results = comparisons(folder)
    names = list(dict.fromkeys(c.benchmark for c in found))
    figure, axes = bar_figure(110 + 17 * len(found) + 24 * len(names))
    position, ticks, labels = 0.0, [], []
    for name in names:
        heading(axes, position, name, size=9)
        position += 1.1
        for c in (c for c in found if c.benchmark == name):
            speed = c.theirs / c.ours
            axes.barh(position, speed - 1, 0.75, left=1, color=BLUE if speed >= 1 else VERMILLION)
            axes.text(max(speed, 1), position, f" {speed:.3g}x  {c.peer}", va="center", size=7)
            ticks.append(position)
            labels.append(c.case)
            position += 1
        position += 0.4
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(ticks, labels, size=7)
    axes.set_ylim(position - 0.5, -0.7)
    axes.set_xscale("log")
    speeds = [c.theirs / c.ours for c in found]
    axes.set_xlim(0.7 * min(1, *speeds), 14 * max(speeds))
    axes.set_xlabel("times as fast as the fastest peer, which is named behind the bar")
    axes.set_title(conditions(results), size=9, loc="right")
    return save(figure, folder / "summary.png")
