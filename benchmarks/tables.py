"""Writes the tables of the README and of docs/ from the result files: ``python -m benchmarks.tables``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``; NAME is a machine's folder below benchmarks/results and
the name of a benchmark, such as ``cpu-x86_64-2/weight_map``, or ``summary`` for one line a case of all of them, or items of the
report from a machine with a GPU, such as ``nvidia-h100/gpu_check:unet+train``. What is not in a result file cannot get into a table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import family, summary
from benchmarks.record import RESULTS, commits, machine, milliseconds

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- results: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def items(report: dict[str, Any], names: list[str]) -> str:
    """The rows of some items of a report (see ``benchmarks/gpu_check``), with the commits that they were measured at."""
    chosen = [item for item in report["items"] if item["name"] in names and item["rows"]]
    rows = [row for item in chosen for row in item["rows"]]
    return table({**report, "rows": rows}, [item["commit"] for item in chosen], rates=True)


def table(result: dict[str, Any], measured: list[str] | None = None, *, rates: bool = False) -> str:
    """One result file as Markdown, with its conditions below, from the commits ``measured`` (by default the file's).

    ``rates`` adds the images a second.
    """
    if "system" in result["rows"][0]:
        return family.table(result)
    rows = result["rows"]
    limit, peak = (any(row.get(name) is not None for row in rows) for name in ("share", "peak_megabytes"))
    rates = rates and any(row.get("images_per_second") is not None for row in rows)
    head = ["case", "candidate", "ms (median)", "quartiles", "ratio"]
    head += ["of the limit"] * limit + ["peak MB"] * peak + ["images/s"] * rates
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    previous = None
    for row in rows:
        case = row["case"] if row["case"] != previous else ""
        previous = row["case"]
        low, median, high = (milliseconds(row[name]) for name in ("low", "median", "high"))
        cells = [case, row["candidate"], median, f"{low} - {high}", f"{row['ratio']:.2f}"]
        if limit:
            cells.append(f"{row['share']:.0%}" if row.get("share") is not None else "")
        if peak:
            cells.append(f"{row['peak_megabytes']:.0f}" if row.get("peak_megabytes") is not None else "")
        if rates:
            cells.append(f"{row['images_per_second']:.0f}" if row.get("images_per_second") is not None else "")
        lines.append(f"| {' | '.join(cells)} |")
    copies = f"; the limit is a copy at {result['copy_bandwidth'] / 1e9:.1f} GB/s, read and written" if limit else ""
    conditions = f"{commits(measured or [result['commit']])}, {machine(result)}, torch {result['torch']}, Python {result['python']}"
    lines.append(f"\n{conditions}{copies}.")
    return "\n".join(lines) + "\n"


def text_for(name: str) -> str:
    """The table that belongs at a place of this name."""
    path = RESULTS / name
    if path.name == "summary":
        return summary.table(path.parent)
    stem, _, chosen = path.name.partition(":")
    result = json.loads((path.parent / f"{stem}.json").read_text())
    return items(result, chosen.split("+")) if chosen else table(result)


def main() -> None:
    """Rewrite the pages in place, and the picture beside a summary, and say what was written."""
    for page in pages():
        written: list[str] = []

        def fill(match: re.Match[str], written: list[str] = written) -> str:
            written.append(match["name"])
            return match[1] + text_for(match["name"]) + match[3]

        text = page.read_text()
        page.write_text(PLACE.sub(fill, text))
        if written:
            print(f"wrote {page}: {', '.join(written)}")
        for name in written:
            if Path(name).name == "summary":
                print(f"wrote {summary.draw((RESULTS / name).parent)}")


if __name__ == "__main__":
    main()
