"""Batch normalisation in eval mode as part of the convolution in front of it, and the choice of the precision on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import unet_fast as uf
from tests.tolerances import NETWORK_FLOAT32, NETWORK_FLOAT64
from unet_fast import remembered
from unet_fast.nn import folding
from unet_fast.ops import _convolution, use_convolution
from unet_fast.train import config


def pair(generator: torch.Generator, dtype: torch.dtype = torch.float64, bias: bool = True):
    layer, norm = nn.Conv2d(3, 5, 3, bias=bias).to(dtype), nn.BatchNorm2d(5).to(dtype).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(5, generator=generator))
        norm.running_var.copy_(torch.rand(5, generator=generator) + 0.1)
    return layer, norm


@pytest.mark.parametrize("bias", [True, False])
def test_folded_layer_computes_the_same(bias, generator):
    layer, norm = pair(generator, bias=bias)
    x = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assert folding.can_fold(norm, layer)
        got = nn.functional.conv2d(x, *folding.folded(norm, layer))
        torch.testing.assert_close(got, norm(layer(x)), **NETWORK_FLOAT64)


def test_folded_weights_follow_every_change(generator):
    layer, norm = pair(generator)
    x = torch.randn(1, 3, 7, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: layer.weight.mul_(2),
            lambda: layer.bias.data.add_(1),  # no version counts this
            lambda: norm.running_mean.add_(1),
            lambda: norm.train()(layer(x)) is norm.eval(),  # new statistics
            lambda: norm.load_state_dict(pair(generator)[1].state_dict()),
            lambda: setattr(norm, "eps", 0.1),
        ):
            change()
            got = nn.functional.conv2d(x, *folding.folded(norm, layer))
            torch.testing.assert_close(got, norm(layer(x)), **NETWORK_FLOAT64)
        first, second = folding.folded(norm, layer), folding.folded(norm, layer)
        assert first[0] is second[0]


def test_nothing_is_kept_of_tensors_without_numbers(generator):
    """Inside of FakeTensorMode real weights give tensors without numbers."""
    plain = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    net = copy.deepcopy(plain)
    uf.accelerate(net, torch.randn(1, 16, 20, 20, generator=generator))
    image = torch.randn(2, 16, 20, 20, generator=generator)
    with torch.no_grad():
        for one in (net, plain):
            one[0].weight.mul_(2)  # what is kept no longer serves
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert net(torch.empty(1, 16, 30, 30)).shape == (1, 16, 28, 28)
        got, truth = net(image), plain(image)
    assert type(got) is torch.Tensor and (got - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_what_cannot_be_folded(generator):
    layer, norm = pair(generator)
    assert not folding.can_fold(norm, layer)  # gradients are recorded
    with torch.no_grad():
        assert not folding.can_fold(norm.train(), layer)
        assert not folding.can_fold(nn.BatchNorm2d(5, track_running_stats=False).double().eval(), layer)
        assert not folding.can_fold(nn.InstanceNorm2d(5).eval(), layer)
        norm.eval().register_forward_hook(lambda *_: None)
        assert not folding.can_fold(norm, layer)


@pytest.mark.parametrize("name", ["unet-bn", "unet3+", "unet++"])
def test_whole_networks_in_eval_mode(name, generator):
    net = uf.models.create(name, base_channels=16, num_classes=2).to(memory_format=torch.channels_last)
    net.fused = False
    x = torch.randn(2, 1, 64, 64, generator=generator).contiguous(memory_format=torch.channels_last)
    net(x)  # statistics that are not 0 and 1
    net.eval()
    with torch.no_grad():
        expected = net(x)
        net.fused = True
        torch.testing.assert_close(net(x), expected, **NETWORK_FLOAT32)


def test_the_precision_is_the_one_that_was_measured_to_be_faster(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    cpu = torch.device("cpu")
    for float32, bfloat16 in ((1e-3, 2e-3), (2e-3, 1e-3)):
        times = {torch.float32: float32, torch.bfloat16: bfloat16}
        monkeypatch.setattr(_convolution, "step_times", lambda times=times: times)
        assert config.fast_bfloat16(cpu) == (bfloat16 < float32)
        assert config.precision_reason(cpu).endswith(
            f"float32 {1e3 * float32:.1f} ms, bfloat16 {1e3 * bfloat16:.1f} ms)"
        )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not config.fast_bfloat16(cpu) and config.precision_reason(cpu) == ""


def test_what_was_measured_decides_every_later_start(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start = _convolution.step_times.__wrapped__  # as a new process calls it
    times = start()
    assert set(times) == {torch.float32, torch.bfloat16} and all(0 < seconds < 60 for seconds in times.values())
    assert start() == times  # to the last bit, which no second measurement gives
    with use_convolution("direct"):  # which is another matter
        assert start() != times
    remembered.cache_file("convolution").write_text('{"truncated')
    assert set(start()) == set(times)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))  # no folder can be made there
    assert set(start()) == set(times)
