"""A pytest plugin (``-p tests.cuda_emulation.plugin``) that puts the emulated CUDA kernels in the place of the CPU ones."""

from __future__ import annotations

import torch

import unet_fast.ops  # noqa: F401  loads the library whose CPU kernels are replaced
from tests.cuda_emulation import load

_library = torch.library.Library("unet_fast", "IMPL")
for _name in load():
    _library.impl(_name, getattr(torch.ops.unet_fast_emulated, _name).default, "CPU", allow_override=True)
