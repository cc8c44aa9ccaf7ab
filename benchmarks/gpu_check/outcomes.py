"""A plugin of pytest: each failure is handed on as it comes, and the numbers of all tests at the end."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import rows

_counts: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a test by its call, or by what went wrong before or after it."""
    if report.when == "call" or report.outcome != "passed":
        _counts[report.outcome] += 1
    if report.failed:
        print(f"FAILED {report.nodeid}", flush=True)
        rows.emit({"test": report.nodeid, "outcome": "failed", "why": report.longreprtext[-1500:]})


def pytest_sessionfinish() -> None:
    """The numbers of all tests, in the process that has them all."""
    if _counts:
        rows.emit({"tests": dict(_counts)})
