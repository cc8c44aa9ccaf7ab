"""The overhead of a call of each operator, as pytest-benchmark measures it (see ``dispatch.py``).

python -m benchmarks.bench_dispatch
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Options, Suite, run
from benchmarks.record import Row
from unet_fast.ops._record import OPS


def main(options: Options) -> None:
    suite = Suite("dispatch", options)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        calls = Path(__file__).with_name("dispatch.py")
        command = [sys.executable, "-m", "pytest", "-q", str(calls), f"--benchmark-json={out}", "--benchmark-quiet"]
        if options.quick:
            command += ["--benchmark-max-time=0.05"]
        done = subprocess.run(command, cwd=calls.parent.parent, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the dispatch benchmark failed:\n{done.stdout}\n{done.stderr}")
        measured = json.loads(out.read_text())["benchmarks"]
    first = measured[0]["stats"]["median"]
    for entry in measured:
        stats = entry["stats"]
        median, low, high = (1e3 * stats[key] for key in ("median", "q1", "q3"))
        name, ratio = entry["params"]["name"], stats["median"] / first
        role, op = ("ours", name) if name in OPS else ("peer", None)
        suite.add(Row("smallest tensors", name, role, median, low, high, ratio, op=op))
    suite.finish()


if __name__ == "__main__":
    run(main)
