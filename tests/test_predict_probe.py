"""Networks that do not state their sizes: what is found by trying them, and that their tiles join."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unet_fast as uf
from tests import peers
from tests.networks import grey, lively, small_networks  # noqa: F401
from tests.tolerances import NETWORK_FLOAT32
from unet_fast.errors import InputError
from unet_fast.predict import OverlapTile
from unet_fast.predict.probe import probe

pytestmark = pytest.mark.core


class CropsAnything(nn.Module):
    """The network of the paper as it is often written: valid convolutions, any size, floors in its poolings."""

    def __init__(self, depth: int = 2, c: int = 4) -> None:
        super().__init__()
        widths = [c << level for level in range(depth + 1)]
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, 2) for b in widths[-2::-1])
        self.out = nn.ModuleList(self.block(2 * b, b) for b in widths[-2::-1])
        self.head = nn.Conv2d(c, 3, 1)

    @staticmethod
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3), nn.ReLU(), nn.Conv2d(b, b, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(nn.functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, block, skip in zip(self.up, self.out, skips[-2::-1], strict=True):
            x = up(x)
            top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            x = block(torch.cat([skip[:, :, top : top + x.shape[2], left : left + x.shape[3]], x], 1))
        return self.head(x)


STATED = {
    "valid": lambda: uf.UNet(2, 3, base_channels=4, depth=2),
    "deeper": lambda: uf.UNet(base_channels=2, depth=3, norm="batch"),
    "same": lambda: uf.UNet(base_channels=4, depth=2, padding="same"),
    "instance norm": lambda: uf.UNet(base_channels=4, depth=1, padding="same", norm="instance"),
    "dental": lambda: uf.models.create("unet-dental", base_channels=4, depth=2),
    "plusplus": lambda: uf.models.create("unet++", base_channels=2),
}


@pytest.mark.parametrize("name", STATED)
def test_what_our_own_networks_state_is_found(name: str, rng: np.random.Generator) -> None:
    net = lively(STATED[name](), rng)
    modes = [module.training for module in net.modules()]
    found, geometry = probe(net), net.geometry
    assert (found.in_channels, found.num_classes) == (net.in_channels, net.num_classes)
    assert (found.geometry.step, found.geometry.margin) == (geometry.step, geometry.margin)
    assert found.geometry.smallest_output <= geometry.smallest_output
    assert geometry.spoilt - geometry.step <= found.geometry.spoilt <= geometry.spoilt
    assert found.tile_dependence == net.tile_dependence
    assert [module.training for module in net.modules()] == modes and not any(m._forward_hooks for m in net.modules())


def test_valid_convolutions_that_take_any_size(rng: np.random.Generator) -> None:
    net = lively(CropsAnything(), rng)
    expected = uf.UNet(1, 3, base_channels=4, depth=2).geometry
    assert probe(net).geometry == uf.models.Geometry(expected.step, expected.margin, expected.smallest_output, 0)
    image = grey(rng, 1, 1, 60, 45)
    m, sizes = expected.margin, [expected.covering_output(size) - size for size in (60, 45)]
    padded = np.pad(image, ((0, 0), (0, 0), *((m, m + more) for more in sizes)), mode="reflect")
    with torch.no_grad():
        truth = net(torch.from_numpy(padded)).softmax(1).numpy()[:, :, :60, :45]
    np.testing.assert_allclose(OverlapTile(net, tile=20)(image), truth, **NETWORK_FLOAT32)


class Squeezed(nn.Module):
    """Squeeze and excitation, written as timm does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


OTHERS = {
    "milesial": lambda: peers.Milesial(base=4),
    "milesial bilinear": lambda: peers.Milesial(base=4, bilinear=True),
    "MONAI BasicUNet": lambda: peers.library("monai.networks.nets").BasicUNet(
        2, 1, 3, features=(4, 4, 8, 8, 8, 4), norm="batch"
    ),
    "smp Unet": peers.NETWORKS["smp Unet"],
    "one convolution": lambda: nn.Conv2d(1, 2, 3),
}


def test_sizes_that_a_network_refuses_are_tried_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    log, said = logging.getLogger("torch._subclasses.fake_tensor"), []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    monkeypatch.setattr(log, "handlers", [*log.handlers, handler])
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 2, 1))
    assert OverlapTile(net, tile=32)(np.zeros((1, 40, 40), np.float32)).shape == (1, 2, 40, 40)
    assert not said and not log.disabled


@pytest.mark.parametrize("name", OTHERS)
def test_tiles_of_other_networks_equal_the_whole_image(name: str, rng: np.random.Generator) -> None:
    net = lively(OTHERS[name](), rng)
    height, width = (int(size) for size in rng.integers(40, 120, 2))
    image = grey(rng, 2, 1, height, width)
    predict = OverlapTile(net, tile=40, batch_size=3)
    geometry = probe(net).geometry
    kept = geometry.spoilt + geometry.step if geometry.zero_padded else 0  # a step more than the tiles have
    before = geometry.margin + kept
    widths = [(before, before + geometry.covering_output(size) - size) for size in image.shape[2:]]
    padded = np.pad(image, ((0, 0), (0, 0), *widths), mode="reflect")
    with torch.no_grad():
        truth = net.eval()(torch.from_numpy(padded)).softmax(1).numpy()[:, :, kept : kept + height, kept : kept + width]
    np.testing.assert_allclose(predict(image), truth, **NETWORK_FLOAT32)


def test_a_step_less_of_surroundings_would_show(rng: np.random.Generator) -> None:
    net = lively(peers.NETWORKS["milesial"](), rng).eval()
    spoilt, step = probe(net).geometry.spoilt, probe(net).geometry.step
    side = 2 * spoilt + 4 * step
    whole = torch.from_numpy(grey(rng, 1, 1, 32, side + step))
    with torch.no_grad():
        apart = (net(whole)[..., step:] - net(whole[..., step:]))[0].abs().amax((0, 1))
    assert apart[: spoilt - step].max() > 0 and apart[spoilt:].max() <= 1e-4


def test_compiled_and_accelerated_networks(rng: np.random.Generator) -> None:
    net = lively(peers.NETWORKS["milesial"](), rng)
    image = grey(rng, 1, 1, 50, 70)
    plain = OverlapTile(net, tile=32)(image)
    compiled = torch.compile(net, backend="eager")
    np.testing.assert_allclose(OverlapTile(compiled, tile=32)(image), plain, **NETWORK_FLOAT32)
    torch.compiler.reset()
    uf.accelerate(net, torch.from_numpy(image[..., :48, :64]))
    np.testing.assert_allclose(OverlapTile(net, tile=32)(image), plain, **NETWORK_FLOAT32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (peers.NETWORKS["MONAI DynUNet"], "normalises by the statistics of its input"),
        (Squeezed, "averages over its whole input"),
    ],
)
def test_what_depends_on_the_whole_input_warns(make, words: str, rng: np.random.Generator) -> None:
    predict = OverlapTile(make(), tile=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(grey(rng, 16, 16))
    with pytest.warns(UserWarning, match=words):
        predict(grey(rng, 40, 40))


class Everywhere(nn.Module):
    """Every pixel attends to all."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.inner(x).flatten(2)
        return (flat @ flat.transpose(1, 2).softmax(-1) @ flat).view(-1, 2, *x.shape[2:])


class Placed(nn.Module):
    """Adds to each pixel a number that its place decides."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.arange(x.shape[3], device=x.device))


def sized(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * side * side, 4), nn.Unflatten(1, (1, 2, 2))
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            peers.NETWORKS["nnU-Net PlainConvUNet"],
            "PlainConvUNet returns a list, expected one tensor .* head to predict with",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "returns a tensor of 2 dimensions"),
        (lambda: nn.Conv2d(1, 2, 2, 2), "288 x 288 pixels of 576 x 576: its output is not a map of the resolution"),
        (lambda: nn.Conv2d(1, 2, 2), "not a map of the resolution of its input, smaller by as much on each side"),
        (
            lambda: sized(64),
            "takes no image from 576 x 576 .* 1 channels .*give OverlapTile a network that states its sizes",
        ),
        (lambda: nn.Conv3d(1, 2, 3), "with any channels .it has no 2-D convolution"),
        (Everywhere, "Everywhere looks at its whole input"),
        (Placed, "Placed computes something else in a tile than in the whole image"),
        (nn.Softmax, "Softmax has no parameters"),
    ],
)
def test_networks_without_sizes_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverlapTile(make())
