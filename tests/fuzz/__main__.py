"""Fuzzes the ops: ``python -m tests.fuzz [OP ...] [--cases 10000] [--seed 0] [--jobs 2] [--device cpu]``.

Each op runs in a process of its own, so many at a time. An op stops at its first mismatch and prints the smallest case that
shows it; the others go on, and the whole exits with 1. The same seed, number of cases and version of hypothesis draw the same cases.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.ops import OPS, why_not
from tests.fuzz.worker import LONGEST_CASE, work

SECONDS = 20.0  # between two lines of progress
CONTEXT = multiprocessing.get_context("spawn")  # forked OpenMP threads hang


@dataclass
class Run:
    """One op that is being fuzzed in another process."""

    name: str
    done: Any = field(default_factory=lambda: CONTEXT.Value("q", 0))
    last: Any = field(default_factory=lambda: CONTEXT.Array("c", LONGEST_CASE))
    began: float = field(default_factory=time.monotonic)
    process: Any = None
    report: Any = None


def begin(name: str, options: argparse.Namespace) -> Run:
    run = Run(name)
    run.report, sender = CONTEXT.Pipe(duplex=False)
    arguments = (name, options.cases, options.seed, options.device, run.done, run.last, sender)
    run.process = CONTEXT.Process(target=work, args=arguments, daemon=True)
    run.process.start()
    sender.close()
    return run


def outcome(run: Run) -> str | None:
    """None when all cases of a finished process agreed, else what to print."""
    if run.process.exitcode == 0:
        return None
    try:
        text = run.report.recv()
    except EOFError:
        text = f"the process ended with {run.process.exitcode} (a negative number is a signal) in\n{run.last.value.decode()}"
    return f"{run.name}: MISMATCH after {run.done.value} cases (shrinking included)\n{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    parser.add_argument("--cases", type=int, default=10_000, help="cases for each op (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the ops run (default: %(default)s)")
    options = parser.parse_args()
    unknown = set(options.ops) - set(OPS)
    if unknown:
        parser.error(f"no op named {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    waiting, running = [], list[Run]()
    for name in options.ops or OPS:
        reason = why_not(name, options.device)
        if reason is None:
            waiting.append(name)
        else:
            print(f"{name:24} not fuzzed: {reason}", flush=True)
    failed = list[str]()
    count, began, spoke = len(waiting), time.monotonic(), time.monotonic()
    while waiting or running:
        while waiting and len(running) < options.jobs:
            running.append(begin(waiting.pop(0), options))
        time.sleep(0.2)
        for run in [run for run in running if not run.process.is_alive()]:
            running.remove(run)
            wrong = outcome(run)
            if wrong is not None:
                failed.append(run.name)
                print(wrong, flush=True)
                continue
            seconds = time.monotonic() - run.began
            print(f"{run.name:24} {run.done.value:7} cases  0 mismatches  {seconds:6.0f} s", flush=True)
        if time.monotonic() - spoke > SECONDS and running:
            spoke = time.monotonic()
            print("  ... " + ", ".join(f"{run.name} {run.done.value}/{options.cases}" for run in running), flush=True)
    if failed:
        sys.exit(
            f"fuzz: {len(failed)} of {count} ops failed; repeat them with: python -m tests.fuzz {' '.join(failed)} "
            f"--seed {options.seed} --cases {options.cases} --device {options.device}"
        )
    print(f"fuzz: {count} ops, seed {options.seed}, no mismatch, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
