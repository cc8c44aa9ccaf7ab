"""Forward passes that are replayed: as the ones that were noted, and not once something has changed."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

import unet_fast as uf
from tests.places import needs
from unet_fast.models import UNet3Plus, UNetBN, UNetDental, UNetPlusPlus, replay
from unet_fast.models.base import SingleHeadModel
from unet_fast.ops import use_convolution

pytestmark = [needs("cpp")]

NETWORKS = {
    "plain": ("unet", {}),
    "batch": ("unet", {"norm": "batch"}),
    "released": ("unet-2015-release", {}),
    "nested": ("unet++", {"deep_supervision": True}),
    "full scale": ("unet3+", {"deep_supervision": True, "classification": True}),
    "adaptive": ("unet-bn", {}),
    "dental": ("unet-dental", {}),
}


@pytest.fixture
def image(generator):
    return torch.rand(1, 1, 60, 60, generator=generator)


def network(which="plain"):
    torch.manual_seed(0)
    name, options = NETWORKS[which]
    net = uf.models.create(name, base_channels=8, depth=2, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return net.to(memory_format=torch.channels_last)


@pytest.fixture
def ran(monkeypatch):
    """Names of what ran instead of a replay."""
    calls: list[str] = []

    def spy(kind):
        computed = kind._computed

        def spied(self, x):
            calls.append(self.name)
            return computed(self, x)

        monkeypatch.setattr(kind, "_computed", spied)

    for kind in (SingleHeadModel, UNetPlusPlus, UNet3Plus, UNetBN, UNetDental):
        spy(kind)
    return calls


@pytest.fixture(params=["auto", "winograd"])
def algorithm(request):
    with use_convolution(request.param):
        yield


@pytest.mark.parametrize("which", NETWORKS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_pass_gives_the_same_bits(which, mode, ran, algorithm, image, generator):
    net, other = network(which), torch.rand(1, 1, 60, 60, generator=generator)
    large = torch.rand(2, 1, 76, 60, generator=generator)
    with mode():
        first = [net(x) for x in (image, image, image, other, large, large, large, image)]
        assert len(ran) == 4  # two of each size
        expected = [net._computed(x) for x in (image, other, large)]
    for got, wanted in zip(first, (0, 0, 0, 1, 2, 2, 2, 0), strict=True):
        assert torch.equal(got, expected[wanted])
        assert got.is_contiguous() == expected[wanted].is_contiguous()
    assert not torch.equal(first[0], first[3])


def write(net, image):
    net.up[0].block[0].weight.mul_(1.5)


def write_past_the_version(net, image):
    net.up[0].block[0].weight.data.mul_(1.5)


def swap_data(net, image):
    net.down[0].block[0].bias.data = net.down[0].block[0].bias + 1


def statistics(net, image):
    net.down[1].block[1].running_mean.add_(0.5)


def statistics_past_the_version(net, image):
    net.down[1].block[1].running_var.data.mul_(2)


def another_parameter(net, image):
    net.head.weight = nn.Parameter(net.head.weight * 2)


def another_layer(net, image):
    net.head = nn.Conv2d(net.head.in_channels, 2, 1)


def another_slope(net, image):
    net.bottom[1].eps = 0.5


def load(net, image):
    net.load_state_dict({name: value * 2 for name, value in net.state_dict().items()})


def drop_out(net, image):
    net.bottom.append(nn.Dropout(0.5))  # which is training


CHANGES = (write, write_past_the_version, swap_data, another_parameter, another_layer, load, drop_out)


@pytest.mark.parametrize("change", [*CHANGES, statistics, statistics_past_the_version, another_slope])
def test_changes_count(change, ran, algorithm, image):
    net = network("plain" if change in CHANGES else "batch")
    with torch.no_grad():
        before = [net(image) for _ in range(4)][-1]
        change(net, image)
        torch.manual_seed(1)
        after = net(image)
        torch.manual_seed(1)
        assert not torch.equal(before, after) and torch.equal(after, net._computed(image))
        again = [net(image) for _ in range(3)][-1]
        torch.manual_seed(1)
        assert change is drop_out or torch.equal(again, net._computed(image))


def test_hooks_modes_and_wishes_are_heeded(ran, image):
    net, seen = network(), []
    with torch.no_grad():
        for _ in range(3):
            net(image)
        assert len(ran) == 2
        handle = net.down[1].block[0].register_forward_hook(lambda *_: seen.append("hook"))
        net(image)
        handle.remove()
        assert seen == ["hook"] and len(ran) == 3
        everywhere = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
        net(image)
        everywhere.remove()
        assert nn.Conv2d in seen and len(ran) == 4
        for _ in range(3):
            replayed = net(image)
        done = len(ran)
        with use_convolution("winograd" if net.down[0].block[0].out_channels < 16 else "direct"):
            assert not torch.equal(net(image), replayed)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(image).dtype == torch.bfloat16
        net.fused = False
        net(image)
        assert len(ran) == done + 3
    assert net(image).requires_grad and net.train()(image).requires_grad


def test_layers_of_others_are_called(ran, image):
    class Counting(nn.Conv2d):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    net = network()
    net.down[0].block[0] = Counting(1, 8, 3)
    with torch.no_grad():
        for _ in range(4):
            net(image)
    assert net.down[0].block[0].calls == 4 == len(ran)


def test_networks_and_what_was_noted_go(image):
    net = network()
    with torch.no_grad():
        for _ in range(3):
            net(image)
    before, weight, module = len(replay._networks), weakref.ref(net.bottom[0].weight), weakref.ref(net)
    del net
    gc.collect()
    assert module() is None and weight() is None and len(replay._networks) == before - 1


def test_threads_replay_at_once(image, generator):
    net, images = network(), [torch.rand(1, 1, 60, 60, generator=generator) for _ in range(4)]
    with torch.no_grad():
        expected = [net._computed(x) for x in images]
        results: dict[int, list[bool]] = {}

    def work(index):
        with torch.no_grad():
            results[index] = [torch.equal(net(images[index]), expected[index]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(results[index]) for index in range(4))


def test_only_some_sizes_are_remembered(generator):
    net = network()
    with torch.no_grad():
        for size in range(44, 44 + 4 * (replay.MOST_SIZES + 3), 4):
            for _ in range(3):
                net(torch.rand(1, 1, size, 44, generator=generator))
    assert len(replay._networks[net].replays) == replay.MOST_SIZES
