"""What runs in a process of its own: the cases of one op."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # cases ask for more threads than there may be cores

import torch  # noqa: E402

from tests.fuzz.ops import fuzz  # noqa: E402

LONGEST_CASE = 4000  # bytes of the last case's text, for a process that dies


def work(run_name: str, cases: int, start: int, device: str, done: Any, last: Any, report: Any) -> None:
    """In the child: fuzz, counting the cases, and send what went wrong."""
    faulthandler.enable()
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True  # NaN in what a kernel forgets to write
    torch.use_deterministic_algorithms(True, warn_only=True)

    def watch(case: Any) -> None:
        done.value += 1
        last.value = repr(case).encode()[: LONGEST_CASE - 1]

    try:
        fuzz(run_name, cases, start=start, device=device, watch=watch)
    except Exception as error:
        case = "\n".join(getattr(error, "__notes__", []))  # which hypothesis shrank
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.send(f"{type(error).__name__} in {where.name}, line {where.lineno}: {error}\n{case}")
        sys.exit(1)
