"""Every benchmark, then the tables of the README: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from benchmarks import tables


def main(names: list[str]) -> None:
    """Run the benchmarks of these ops, all by default."""
    available = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    unknown = set(names) - set(available)
    if unknown:
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(available)}")
    for name in names or available:
        runpy.run_module(f"benchmarks.bench_{name}", run_name="__main__")
    tables.main()


if __name__ == "__main__":
    main(sys.argv[1:])
