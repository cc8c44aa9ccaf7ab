"""The devices that exist."""

from __future__ import annotations

import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# A device, and the backend to ask for on it; None keeps the wish of the environment. A GPU's ops run on each of its two.
PLACES = [("cpu", None)] + [("cuda", backend) for backend in ("cuda", "triton") if torch.cuda.is_available()]
