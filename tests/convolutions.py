"""Maps for the tests of the 3x3 convolution, and how far results may lie apart."""

from __future__ import annotations

import torch

LEVELS = ("plain", "avx2", "avx512")  # those that the processor lacks run as the next one below


def draw(generator, *shape, last=True):
    tensor = torch.randn(shape, generator=generator)
    return tensor.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else tensor


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def scale(tensor):
    """What the errors of a sum of as many random terms, of which some cancel, are compared with."""
    return max(rms(tensor), 1e-30)
