"""Every benchmark, then the tables of the README: ``python -m benchmarks [NAME ...] [--device cuda] [--quick]``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from benchmarks import samples, tables
from benchmarks.common import parse
from unet_fast.ops._record import OPS


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks of these ops, all by default."""
    names, options = parse(arguments, "Benchmarks of the operators and of the network.")
    files = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    available = sorted(files | set(OPS))
    unknown = set(names) - set(available)
    if unknown:
        sys.exit(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(available)}")
    failed = list[str]()
    chosen = names or sorted(files)
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name} on {options.device}", flush=True)
        try:
            if name in files:
                importlib.import_module(f"benchmarks.bench_{name}").main(options)
            else:
                samples.main(name, options)
        except Exception:  # the others are measured all the same
            traceback.print_exc()
            failed.append(name)
    if not options.quick:
        tables.main()
    if failed:
        sys.exit(f"benchmarks: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
