"""Latency of our networks in every engine that is installed, with cold start and memory: the table of docs/deployment.md.

Not an operator's benchmark: what is measured are whole networks as users deploy them, by ``unet_fast.deploy.latency``. The
rows go to ``results/<machine>/latency_<network>.json``, with a picture beside them.
"""

from __future__ import annotations

import os

import torch

import unet_fast as uf
from benchmarks.common import RESULTS, Options, commit, machine_name

# network, options, tiles; the second is the paper's
NETWORKS = (
    ("unet", {"base_channels": 32, "depth": 3, "padding": "same"}, (256, 512)),
    ("unet", {"base_channels": 64, "depth": 4, "padding": "valid"}, (388,)),
    ("unet++", {"base_channels": 16}, (256,)),
    ("unet-resnet18", {}, (256,)),
)
TINY = (("unet", {"base_channels": 4, "depth": 2}, (32,)),)


def main(options: Options) -> None:
    """Measure, print and write."""
    torch.manual_seed(0)
    cases = TINY if options.tiny else NETWORKS[: 1 if options.quick else None]
    batches = (1,) if options.quick or options.tiny else (1, 4)
    folder = RESULTS / machine_name(options.device)
    for name, arguments, tiles in cases:
        model = uf.models.create(name, **arguments).eval().to(options.device)
        engines = ["torch"] if options.tiny else "all"  # tiny compiles nothing
        found = uf.deploy.latency(
            model, engines=engines, tiles=tiles, batches=batches, cold=not options.tiny, announce=print
        )
        found.conditions["commit"] = commit()
        print(found)
        if options.tiny or options.quick:
            continue
        label = "_".join([name.replace("+", "p"), *(str(value) for value in arguments.values())])
        written = found.save(folder / f"latency_{label}")
        print(f"wrote {os.path.relpath(written)}")
