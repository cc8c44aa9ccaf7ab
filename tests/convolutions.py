"""For the tests of the 3x3 convolution: maps, the forms of its kernel, and how far results may lie apart."""

from __future__ import annotations

import pytest
import torch

from unet_fast.ops import use_convolution

LEVELS = ("plain", "avx2", "avx512")  # those that the processor lacks run as the next one below


@pytest.fixture(params=LEVELS, name="level")
def cpu_level(request, monkeypatch):
    monkeypatch.setenv("UNET_FAST_CPU_LEVEL", request.param)
    return request.param


@pytest.fixture(autouse=True)
def winograd():
    with use_convolution("winograd"):
        yield


def draw(generator, *shape, last=True):
    tensor = torch.randn(shape, generator=generator)
    return tensor.contiguous(memory_format=torch.channels_last) if last and len(shape) == 4 else tensor


def rms(tensor):
    return tensor.double().square().mean().sqrt().item()


def scale(tensor):
    """What the errors of a sum of as many random terms, of which some cancel, are compared with."""
    return max(rms(tensor), 1e-30)
