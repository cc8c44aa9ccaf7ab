"""Runs one item in a process of its own and tells what became of it, never with an exception."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.gpu_check.items import Item

ROOT = Path(__file__).resolve().parents[2]
LINES = 60  # of an item's output that are kept


def run(item: Item, limit: float) -> dict[str, Any]:
    """Run ``item`` for at most ``limit`` seconds; its record: name, command, outcome, seconds, rows, last lines.

    Rows and output are kept as they come, so that an item which fails or runs out of time loses none of either. What passed
    has said all in its rows, if it has any.
    """
    variables = [f"{name}={value}" for name, value in item.variables.items()]
    record: dict[str, Any] = {
        "name": item.name,
        # as one would type it: where this machine keeps its interpreter says nothing elsewhere
        "command": " ".join([*variables, *("python" if part == sys.executable else part for part in item.command)]),
        "limit": round(limit, 1),
    }
    missing = [name for name in item.needs if not shutil.which(name) and not find_spec(name.replace("-", "_"))]
    if missing:
        why = f"not run: {', '.join(missing)} not installed here"
        return {**record, "outcome": why, "seconds": 0.0, "rows": [], "output": []}
    with tempfile.TemporaryDirectory() as folder:
        figures, log = Path(folder) / "rows", Path(folder) / "log"
        began = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                item.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **item.variables, rows.VARIABLE: str(figures)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children end with it
            )
            try:
                code = process.wait(limit)
                outcome = "passed" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                outcome = f"not finished after {limit:.0f} s"
        seconds = time.monotonic() - began
        found = [{"seconds": round(seconds, 1)}] if item.name == "build" else rows.read(figures)
        return {
            **record,
            "outcome": outcome,
            "seconds": round(seconds, 1),
            "rows": found,
            "output": [] if outcome == "passed" and found else _portable(log.read_text(errors="replace"))[-LINES:],
        }


def _portable(text: str) -> list[str]:
    """The lines of a log, without where this machine keeps the project and its Python, which says nothing elsewhere."""
    for place in (ROOT, sys.prefix):
        text = text.replace(f"{place}{os.sep}", "")
    return text.splitlines()
