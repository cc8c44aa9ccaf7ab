"""The transformed weights that conv3x3 keeps for inference: never stale, used again, freed with their layer."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from tests.convolutions import LEVELS, draw, winograd  # noqa: F401
from tests.places import needs
from tests.tolerances import CONVOLUTION
from unet_fast.nn import ConvReLU
from unet_fast.ops import _convolution, conv3x3

pytestmark = [pytest.mark.kernels, needs("cpp")]


def test_follow_every_change(generator):
    x, layer = draw(generator, 1, 16, 10, 10), ConvReLU(16, 16, 3)

    def check():
        with torch.no_grad():
            torch.testing.assert_close(
                layer(x), F.relu(F.conv2d(x, layer.weight, layer.bias)), **CONVOLUTION[torch.float32]
            )

    check()
    with torch.no_grad():
        layer.weight.mul_(-1)
    check()
    layer.weight.data.mul_(2)  # no version counts this
    check()
    kept = _convolution._kept[layer.weight][1]
    check()
    assert _convolution._kept[layer.weight][1] is not kept  # made anew, once
    kept = _convolution._kept[layer.weight][1]
    check()
    assert _convolution._kept[layer.weight][1] is kept
    layer.weight.data = draw(generator, 16, 16, 3, 3)
    check()
    layer.load_state_dict(ConvReLU(16, 16, 3).state_dict())
    check()
    layer.to(memory_format=torch.channels_last)
    check()
    layer.weight = torch.nn.Parameter(draw(generator, 16, 16, 3, 3))
    check()
    with torch.inference_mode():
        layer.weight.add_(1)
    check()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1.0, fused=True)
    layer(x).sum().backward()
    optimizer.step()
    check()


def test_are_used_again_and_freed_with_the_layer(generator):
    gc.collect()  # networks of other tests
    before = len(_convolution._kept)
    x, layer = draw(generator, 1, 16, 10, 10), ConvReLU(16, 16, 3)
    with torch.inference_mode():
        layer(x)
        kept = _convolution._kept[layer.weight][1]
        layer(x)
        assert _convolution._kept[layer.weight][1] is kept
    assert len(_convolution._kept) == before + 1
    del layer
    gc.collect()
    assert len(_convolution._kept) == before


def test_are_not_kept_in_training(generator):
    layer = ConvReLU(16, 16, 3)
    layer(draw(generator, 1, 16, 10, 10)).sum().backward()
    assert layer.weight not in _convolution._kept


def test_are_not_kept_of_the_widest_layers(generator):
    x, layer = draw(generator, 1, 256, 10, 10), ConvReLU(256, 256, 3)
    with torch.inference_mode():
        torch.testing.assert_close(
            layer(x), F.relu(F.conv2d(x, layer.weight, layer.bias)), **CONVOLUTION[torch.float32]
        )
    assert layer.weight not in _convolution._kept


def test_of_another_instruction_set_are_made_anew(generator, monkeypatch):
    x, weight = draw(generator, 1, 16, 10, 10), draw(generator, 16, 16, 3, 3)
    for name in LEVELS:
        monkeypatch.setenv("UNET_FAST_CPU_LEVEL", name)
        torch.testing.assert_close(conv3x3(x, weight), F.conv2d(x, weight), **CONVOLUTION[torch.float32])
