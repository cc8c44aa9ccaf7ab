"""What a result file holds: a row for each candidate of a case, and how figures are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One candidate of one case; times in milliseconds, ``ratio`` = its median over that of the case's first candidate."""

    case: str
    candidate: str  # as it is shown
    role: str  # "ours", "peer", or "floor": a limit that does not do the work
    median: float
    low: float
    high: float
    ratio: float
    op: str | None = None  # of ours, the operator that is measured; None for a whole network
    variant: str = ""  # of ours, what tells it from another candidate that calls the same operator
    backend: str | None = None  # of ours on a GPU, where CUDA and Triton are compared
    share: float | None = None  # of the limit: time that a copy of the least bytes would take over the median
    method: str = "timer"  # or "graph" or "events" on a GPU
    images: int | None = None  # that a call works on
    side: int | None = None  # of these images, in a sweep over sizes
    images_per_second: float | None = None
    peak_megabytes: float | None = None  # 10^6 bytes of tensors that the call held at once


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, a line a row."""
    rows = [json.dumps(row) for row in result["rows"]]
    head = json.dumps({**result, "rows": []}, indent=1).removesuffix("[]\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "[\n  " + ",\n  ".join(rows) + "\n ]\n}\n" if rows else head + "[]\n}\n")


def other_cases(path: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of other cases that the file has already, measured under the same conditions; none where they were others."""
    if not path.exists():
        return []
    there = json.loads(path.read_text())
    if any(there[name] != value for name, value in head.items() if name != "copy_bandwidth"):
        return []
    cases = {row["case"] for row in rows}
    return [row for row in there["rows"] if row["case"] not in cases]


def fields(row: Row) -> dict[str, Any]:
    """A row as it is written: what is not known of it is left out."""
    return {name: value for name, value in asdict(row).items() if value not in (None, "")}


def milliseconds(value: float) -> str:
    """Three digits, or whole milliseconds."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def machine(result: dict[str, Any]) -> str:
    """The GPU, or the processor and the threads, of a result file."""
    return result["gpu"] or f"{result['processor']}, {threads(result)}"


def threads(result: dict[str, Any]) -> str:
    """``1 thread`` or ``2 threads``."""
    return f"{result['threads']} thread{'s' * (result['threads'] != 1)}"


def commits(names: Iterable[str]) -> str:
    """``Commit a`` or ``Commits a, b``."""
    each = sorted(set(names))
    return f"Commit{'s' * (len(each) > 1)} {', '.join(each)}"
