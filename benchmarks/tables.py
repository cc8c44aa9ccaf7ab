"""Writes the tables of the README from the result files: ``python -m benchmarks.tables``.

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``; NAME is a machine's folder below benchmarks/results and
the name of a benchmark, such as ``cpu-x86_64-2/weight_map``. What is not in a result file cannot get into a table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

README = Path(__file__).parent.parent / "README.md"
PLACE = re.compile(r"(<!-- results: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(result: dict[str, Any]) -> str:
    """One result file as Markdown, with its conditions below."""
    lines = ["| case | candidate | ms (median) | quartiles | ratio |", "|---|---|---:|---:|---:|"]
    previous = None
    for row in result["rows"]:
        case = row["case"] if row["case"] != previous else ""
        previous = row["case"]
        spread = f"{row['low']:.2f} - {row['high']:.2f}"
        lines.append(f"| {case} | {row['candidate']} | {row['median']:.2f} | {spread} | {row['ratio']:.2f} |")
    where = result["gpu"] or f"{result['processor']}, {result['threads']} threads"
    lines.append(f"\nCommit {result['commit']}, {where}, torch {result['torch']}, Python {result['python']}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite the README in place and say which tables were written."""
    written = []

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        written.append(name)
        return match[1] + table(json.loads((RESULTS / f"{name}.json").read_text())) + match[3]

    README.write_text(PLACE.sub(fill, README.read_text()))
    print(f"wrote {README.name}: {', '.join(written) or 'no tables'}")


if __name__ == "__main__":
    main()
