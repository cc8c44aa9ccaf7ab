"""``python -m benchmarks.gpu_check [ITEM ...]``: evidence from a machine with a GPU, the most valuable first.

Uses the current interpreter and what is installed there, no network, no virtual environment: torch with CUDA, nvcc, Triton,
and what the tests need. The report, benchmarks/results/<gpu>/gpu_check.json, is written anew after every item, and copied
into the folder that the variable OUT names. ``--device cpu`` tries the items out where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import commit, conditions
from benchmarks.gpu_check import report
from benchmarks.gpu_check.items import TOTAL, Item, items, processors
from benchmarks.gpu_check.runner import run
from unet_fast.errors import InputError

LEAST = 5.0  # seconds below which no item is begun


def main(arguments: list[str] | None = None) -> None:
    options, wanted = parse(arguments)
    device = options.device
    path = options.report or report.place(device)
    kept = report.earlier(options.resume) if options.resume else []
    records = {record["name"]: record for record in kept if record["outcome"] == "passed" and record["name"] != "build"}
    found: dict[str, Any] = {**conditions(device), "commit": options.commit, "versions": report.versions()}
    found |= {"clocks before": report.clocks(), "items": []}
    began, failed = time.monotonic(), list[str]()
    for item in wanted:
        if item.name in records:
            print(f"gpu-check: {item.name} has passed before", flush=True)
            continue
        left = options.budget - (time.monotonic() - began)
        if left < LEAST:
            print(f"gpu-check: {item.name} and what follows not run: the budget of {options.budget:.0f} s is used up")
            failed.append(item.name)
            break
        limit = min(item.limit, left)
        print(f"gpu-check: {item.name}, at most {limit:.0f} s", flush=True)
        record = records[item.name] = run(item, limit) | {"commit": options.commit}
        found |= {"items": list(records.values()), "clocks after": report.clocks()}
        report.save(path, found)
        print(f"gpu-check: {item.name} {record['outcome']}, {record['seconds']} s", flush=True)
        if record["outcome"] != "passed":
            print("\n".join(record["output"]), flush=True)
            if not record["outcome"].startswith("not run"):
                failed.append(item.name)
                if item.vital and item.name == "build":
                    sys.exit("gpu-check: nothing can be measured without the build")
    print(f"gpu-check: {time.monotonic() - began:.0f} s, wrote {path}")
    if failed:
        sys.exit(f"gpu-check: not everything passed: {', '.join(failed)}")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[Item]]:
    """The options, and the items that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ITEM", help="items to run (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="small images, to see that all of it runs")
    parser.add_argument("--budget", type=float, default=TOTAL, help="seconds in all (default: %(default)s)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="an earlier report: what passed there is kept")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where to write the report")
    parser.add_argument("--jobs", type=int, default=processors(), help="processes at a time (default: %(default)s)")
    parser.add_argument("--commit", default=commit(), help="of this copy, where git cannot tell (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu tries out the items without one")
    architecture = "{}.{}".format(*torch.cuda.get_device_capability()) if options.device == "cuda" else ""
    available = items(options.device, options.jobs, architecture=architecture, tiny=options.tiny)
    unknown = set(options.names) - {item.name for item in available}
    if unknown:
        names = ", ".join(item.name for item in available)
        parser.error(f"no item named {', '.join(sorted(unknown))}; there are {names}")
    return options, [item for item in available if not options.names or item.name in options.names]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"gpu-check: {error}")
