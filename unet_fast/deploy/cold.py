"""A process that loads a network into an engine and computes one result: how long that takes, and in how much memory.

Run by :func:`unet_fast.deploy.latency`; prints ``[time of the first result, peak MiB]``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Load, compute, report."""
    folder, backend, precision, batch, side, threads, device = json.loads(sys.argv[1])

    import torch

    from unet_fast import models
    from unet_fast.deploy import engines
    from unet_fast.deploy.description import Description
    from unet_fast.train.checkpoint import load_tensors

    torch.set_num_threads(threads)
    tensors, state = load_tensors(Path(folder) / "model.safetensors")
    description = Description.read(state["description"], folder)
    model = models.create(**description.model)
    model.load_state_dict(tensors)
    onnx = Path(folder) / "model.onnx"
    made = engines.create(
        model.eval(), description, backend, precision, device=device, onnx=onnx if onnx.exists() else None
    )
    made(torch.zeros(batch, model.in_channels, side, side)).cpu()
    ready = time.time()
    print(json.dumps([ready, _peak_mib(device)]))


def _peak_mib(device: str) -> float:
    """What the process has held at most: of a GPU's memory, or of the machine's."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**20
    try:  # of this program alone; what getrusage says includes the process that started it
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
