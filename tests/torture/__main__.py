"""Tortures the package: ``python -m tests.torture [CAMPAIGN ...] [--scale 1.0] [--seed 0]``, for an hour or so.

Prints a line of counts for each campaign, and what went wrong; exits with 1 where anything did.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"  # forked OpenMP threads hang


def main() -> None:
    # what a run imports when it comes to it is imported here, once and not in every process that is forked
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torch._dynamo  # noqa: F401

    from tests.pictures import draw_little
    from tests.torture.campaigns import campaigns

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="CAMPAIGN", help="signals, weights, images, disks, settings (default: all)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    options = parser.parse_args()
    short = options.scale <= 0.1
    if short:
        draw_little()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        every = campaigns(
            np.random.default_rng(options.seed),
            Path(folder),
            runs_=max(4, round(100 * options.scale)),
            steps=24 if short else 60,
            damaged=max(10, round(500 * options.scale)),
            files=max(20, round(2000 * options.scale)),
            full=max(3, round(100 * options.scale)),
            hostile=max(10, round(60 * options.scale)),
        )
        unknown = set(options.names) - set(every)
        if unknown:
            parser.error(f"no campaign named {', '.join(sorted(unknown))}; there are {', '.join(every)}")
        for name in options.names or every:
            began = time.monotonic()
            for counts in every[name]():
                print(counts, flush=True)
                for text in counts.wrong:
                    print("    " + text.strip().replace("\n", "\n    "), flush=True)
                wrong += counts.outcomes["wrong"]
            print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    if wrong:
        sys.exit(f"torture: {wrong} wrong, seed {options.seed}")
    print(f"torture: nothing wrong, seed {options.seed}")


if __name__ == "__main__":
    main()
