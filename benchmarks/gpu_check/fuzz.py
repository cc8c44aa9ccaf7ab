"""Random cases of every operator, each operator in a process of its own; a mismatch of one stops no other.

python -m benchmarks.gpu_check.fuzz [OP ...] [--device cuda] [--cases 100] [--jobs 4]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks import rows
from unet_fast.ops import _backends
from unet_fast.ops._record import OPS

LINES = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="OP", help="default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()

    wish = _backends.wish()
    able = [name for name in OPS if wish == "auto" or _backends.why_not(wish, name, options.device) is None]

    def one(name: str) -> bool:
        cases = f"from tests.fuzz.ops import fuzz; fuzz({name!r}, {options.cases}, device={options.device!r})"
        done = subprocess.run((sys.executable, "-c", cases), capture_output=True, text=True)
        said = (done.stdout + done.stderr).splitlines()[-LINES:]
        right = done.returncode == 0
        print(f"{name}: {'no mismatch' if right else chr(10).join(said)}", flush=True)
        rows.emit({"op": name, "cases": options.cases, "outcome": "no mismatch" if right else "\n".join(said)})
        return right

    with ThreadPoolExecutor(options.jobs) as pool:
        if not all([*pool.map(one, options.names or able)]):
            sys.exit("fuzz: not all operators agree with their truths")


if __name__ == "__main__":
    main()
