"""Writes what a GPU takes by default, from the result files: ``python -m benchmarks.backends``.

For each op CUDA or Triton. Every row of benchmarks/results whose backend is CUDA or Triton counts if it has its other half in the same case of the
same file. An op takes the backend with the smaller geometric mean of times over all its cases; CUDA, which is called
without a detour through Python, unless Triton is faster by more than the spread of such figures. What has no such
rows is not in the table, and takes the CUDA library.

For 3x3 convolutions on a CPU from how many tiles on ours is the faster one, by channels: the table of
benchmarks/bench_conv3x3_choice.py.

For networks the fused layers or torch's own: the geometric mean of the times of "ours" over "plain" in every case of
benchmarks/bench_unet.py that has both, run alike.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from unet_fast.ops import _backends

MARGIN = 1.03  # a smaller gain is not worth the detour
# Ops without rows of their own, and the op that runs the same kernels.
STANDS_FOR = {"up_conv_into": "up_conv_crop_concat", "bias_relu": "conv_bias_relu"}


def rows_of(found: Any) -> Iterator[dict[str, Any]]:
    """All rows of a result file or a report, however deep."""
    if isinstance(found, dict):
        if {"case", "candidate", "median", "role"} <= found.keys():
            yield found
        found = list(found.values())
    if isinstance(found, list):
        for each in found:
            yield from rows_of(each)


def ratios(results: Path) -> dict[str, list[float]]:
    """Time of Triton over that of CUDA, for every op and each case that has both."""
    collected: dict[str, list[float]] = defaultdict(list)
    for path in sorted(results.glob("*/*.json")):
        content = json.loads(path.read_text())
        times: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
        for row in rows_of(content):
            if row.get("op") in _backends.KERNELS and row.get("backend") and row["median"]:
                times[row["op"], row.get("variant", ""), row["case"]][row["backend"]] = row["median"]
        for (op, _, _), both in times.items():
            if len(both) == 2:
                collected[op].append(both["triton"] / both["cuda"])
    for op, other in STANDS_FOR.items():
        if op not in collected and other in collected:
            collected[op] = collected[other]
    return collected


def fused_ratios(results: Path) -> list[float]:
    """Time of our networks over that of torch's layers on a GPU, for each case and way to run both."""
    found = []
    for path in sorted(results.glob("*/*.json")):
        content = json.loads(path.read_text())
        if not content.get("gpu"):
            continue
        times: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows_of(content):
            if row.get("benchmark") == "unet":
                times[row["case"]][row["candidate"]] = row["median"]
        for case in times.values():
            alike = ((name, name.replace("ours", "plain", 1)) for name in case if name.startswith("ours"))
            found += [case[ours] / case[plain] for ours, plain in alike if plain in case]
    return found


def mean_of(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def table(results: Path = RESULTS) -> dict[str, Any]:
    """For every measured op the faster backend, and by how much, over how many cases; and the same of whole networks."""
    fused = fused_ratios(results)
    networks = {"fused over plain": round(mean_of(fused), 3), "cases": len(fused)} if fused else None
    return {"ops": ops_table(results), "networks": networks, "convolution": convolution_table(results)}


def convolution_table(results: Path) -> dict[str, Any] | None:
    """The channels where a class begins, and by instruction set and kind of call the least tiles of each pair; 0: never."""
    path = next(results.glob("*/convolution_choice.json"), None)
    if path is None:
        return None
    found = json.loads(path.read_text())
    levels = {name: level["least tiles"] for name, level in found["levels"].items()}
    return {"inputs": found["inputs"], "outputs": found["outputs"], "levels": levels}


def ops_table(results: Path) -> dict[str, dict[str, Any]]:
    """For every measured op the faster backend."""
    found = {}
    for op, values in sorted(ratios(results).items()):
        mean = mean_of(values)
        fastest = "triton" if mean * MARGIN < 1 else "cuda"
        found[op] = {"fastest": fastest, "triton over cuda": round(mean, 3), "cases": len(values)}
    return found


def main() -> None:
    """Write the table into the package and say what it holds."""
    found = table()
    text = json.dumps(found, indent=1)
    # a row of numbers a line
    text = re.sub(r"\[[\d\s,]+\]", lambda match: " ".join(match[0].split()), text)
    _backends.MEASURED_FILE.write_text(text + "\n")
    print(f"wrote {_backends.MEASURED_FILE}: {len(found['ops'])} ops, networks {found['networks']}")
    for op, entry in found["ops"].items():
        print(f"  {op}: {entry['fastest']} (triton / cuda = {entry['triton over cuda']}, {entry['cases']} cases)")


if __name__ == "__main__":
    main()
