"""What every benchmark shares: one timer, one table, one kind of result file.

Candidates are timed in turn, round after round, so that a machine that slows down slows all of them; figures are medians
over the rounds, with the quartiles as spread. A benchmark checks its candidates against each other before it times them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One candidate of one case; times in milliseconds, ``ratio`` = its median over that of the case's first candidate."""

    case: str
    candidate: str
    median: float
    low: float
    high: float
    ratio: float


@dataclass
class Suite:
    """The rows of one benchmark file."""

    name: str
    rows: list[Row] = field(default_factory=list)

    def measure(
        self, case: str, candidates: dict[str, Callable[[], Any]], *, rounds: int = 15, seconds: float = 0.02
    ) -> None:
        """Time the candidates of one case; the first is what the others are compared with."""
        timers = {
            name: Timer("f()", globals={"f": call}, num_threads=torch.get_num_threads())
            for name, call in candidates.items()
        }
        repeats = {}
        for name, timer in timers.items():
            once = timer.timeit(2).median  # also warms up
            repeats[name] = max(1, round(seconds / max(once, 1e-9)))
        times: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(rounds):
            for name, timer in timers.items():
                times[name].append(timer.timeit(repeats[name]).median * 1e3)
        first = float(np.median(next(iter(times.values()))))
        for name, values in times.items():
            low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
            self.rows.append(Row(case, name, median, low, high, median / first))

    def finish(self) -> None:
        """Print the table and write the result file."""
        table = Table("case", "candidate", "ms (median)", "quartiles", "ratio", title=self.name)
        previous = None
        for row in self.rows:
            table.add_row(
                row.case if row.case != previous else "",
                row.candidate,
                f"{row.median:.3f}",
                f"{row.low:.3f} - {row.high:.3f}",
                f"{row.ratio:.2f}",
            )
            previous = row.case
        Console(file=sys.stdout).print(table)
        path = RESULTS / machine_name() / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**conditions(), "rows": [asdict(row) for row in self.rows]}, indent=1) + "\n")
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_name() -> str:
    """A folder name for this machine's results: the GPU's name, or the kind and number of processors."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{platform.machine()}-{os.cpu_count()}"


def commit() -> str:
    """The commit that is measured, with ``+`` when the working tree differs from it."""
    try:
        here = Path(__file__).parent
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
        return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def conditions() -> dict[str, Any]:
    """What must be known to read a figure."""
    return {
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
