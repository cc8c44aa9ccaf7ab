"""The U-Nets beside the paper's: released, for electron microscopy, with batch norm, dental; against plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unet_fast as uf
from tests.networks import lively, small_networks  # noqa: F401
from tests.tolerances import EXACT, NETWORK_FLOAT32, NETWORK_FLOAT64
from unet_fast.errors import InputError
from unet_fast.models import HeadOutputs


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class Plain:
    """The weights of a network, taken one layer after the other in the order of its definition."""

    def __init__(self, net: nn.Module) -> None:
        self.convolutions = iter([layer for layer in net.modules() if isinstance(layer, nn.Conv2d)])
        self.ups = iter([layer for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)])
        self.norms = iter([layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)])

    def convolve(self, x: Tensor, padding: int) -> Tensor:
        layer = next(self.convolutions)
        return F.conv2d(x, layer.weight, layer.bias, padding=padding)

    def block(self, x: Tensor, padding: int, norm: bool = False) -> Tensor:
        for _ in range(2):
            x = self.convolve(x, padding)
            if norm:
                n = next(self.norms)
                x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)
            x = F.relu(x)
        return x

    def up(self, x: Tensor, padding: int = 0) -> Tensor:
        layer = next(self.ups)
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=padding)

    def contract(self, x: Tensor, depth: int, padding: int) -> tuple[Tensor, list[Tensor]]:
        """The output of the lowest level, and the skips."""
        skips = []
        for _ in range(depth):
            x = self.block(x, padding)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        return self.block(x, padding), skips


def centre(x: Tensor, size: torch.Size) -> Tensor:
    top, left = (x.shape[2] - size[2]) // 2, (x.shape[3] - size[3]) // 2
    return x[:, :, top : top + size[2], left : left + size[3]]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_released_network_equals_plain_pytorch(rng: np.random.Generator, depth: int) -> None:
    """The structure, in float64: every number of the output and of the gradients; and the output in float32."""
    single = lively(uf.models.UNet2015Release(2, 3, base_channels=4, depth=depth), rng).eval()
    net = copy.deepcopy(single).double()
    size = net.geometry.smallest_input + 2 * net.geometry.step
    x = draw(rng, 2, 2, size, size + net.geometry.step).double().requires_grad_()
    plain = Plain(net)
    y, skips = plain.contract(x, depth, 0)
    for _ in range(depth):
        y = F.relu(plain.up(y))
        y = plain.block(torch.cat([y, centre(skips.pop(), y.shape)], 1), 0)
    expected = plain.convolve(y, 0)
    actual = net(x)
    torch.testing.assert_close(actual, expected, **NETWORK_FLOAT64)
    torch.testing.assert_close(single(x.float()).double(), expected, **NETWORK_FLOAT32)
    grad, inputs = draw(rng, *actual.shape).double(), [x, *net.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT64)


def test_the_released_network_drops_the_two_lowest_levels(rng: np.random.Generator) -> None:
    net = uf.models.create("unet-2015-release", base_channels=8, depth=3)
    assert [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)] == [0.0, 0.0, 0.5, 0.5]
    seen: dict[str, Any] = {}
    net.down[2].block.register_forward_hook(lambda module, args, out: seen.update(block=out.detach().clone()))
    net.down[2].pool.register_forward_pre_hook(lambda module, args: seen.update(pooled=args[0].detach().clone()))
    net.up[0].concat.register_forward_pre_hook(lambda module, args: seen.update(skip=args[0].detach().clone()))
    net(draw(rng, 1, 1, 124, 124))
    # one mask: what is joined on the way up is what went down, half of it dropped and the rest doubled
    torch.testing.assert_close(seen["skip"], seen["pooled"], **EXACT)
    alive = seen["block"] > 0
    kept = seen["skip"][alive] > 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(seen["skip"][alive][kept], 2 * seen["block"][alive][kept], **EXACT)


def test_em_turns_512_mirrored_to_700_into_512() -> None:
    net = uf.models.create("unet-em", base_channels=1)
    assert (net.margin, net.geometry.step, net.num_classes) == (94, 16, 1)
    assert (net.input_size(512), net.output_size(700)) == (700, 512)
    with torch.no_grad():
        assert tuple(net(torch.zeros(1, 1, 700, 700)).shape) == (1, 1, 512, 512)
        assert tuple(net(torch.zeros(1, 1, 204, 220)).shape) == (1, 1, 16, 32)
    with pytest.raises(InputError, match="nearest legal input sizes are 700 and 716"):
        net.output_size(704)
    with pytest.raises(InputError, match="smallest legal input size is 204"):
        net.output_size(188)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_em_equals_the_zero_padded_network_without_its_margin(rng: np.random.Generator, depth: int) -> None:
    net = lively(uf.models.UNetEM(base_channels=4, depth=depth), rng)
    size = net.geometry.smallest_input
    x = draw(rng, 1, 1, size + net.geometry.step, size).requires_grad_()
    plain = Plain(net)
    y, skips = plain.contract(F.pad(x, (2, 2, 2, 2)), depth, 1)
    for _ in range(depth):
        y = plain.up(y)
        y = plain.block(torch.cat([skips.pop(), y], 1), 1)
    padded = plain.convolve(plain.block(y, 1), 0)
    assert padded.shape[2] == x.shape[2] + 4
    actual = net(x)
    expected = centre(padded, actual.shape)
    assert padded.shape[2] - expected.shape[2] == 2 * (net.margin + 2)
    torch.testing.assert_close(actual, expected, **NETWORK_FLOAT32)
    (ours,) = torch.autograd.grad(actual.square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x)
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, **NETWORK_FLOAT32)


def plain_adaptive(net: uf.models.UNetBN, x: Tensor, depth: int) -> Tensor:
    """Eval mode at a given depth, by indexing the levels of the network."""
    skips = []
    for level in range(depth):
        skips.append(Plain(net.levels[level]).block(x, 1, norm=True))
        x = F.max_pool2d(skips[-1], 2)
    x = Plain(net.levels[depth]).block(x, 1, norm=True)
    for level in reversed(range(depth)):
        plain = Plain(net.up[level])
        x = plain.up(x)
        skip = F.interpolate(skips.pop(), x.shape[2:], mode="bilinear")
        x = plain.block(torch.cat([skip, x], 1), 1, norm=True)
    return F.conv2d(x, net.head.weight, net.head.bias)


@pytest.mark.parametrize(
    ("height", "width", "depth"), [(32, 48, 3), (8, 9, 3), (21, 35, 3), (7, 60, 2), (3, 3, 1), (9, 1, 0), (1, 1, 0)]
)
def test_the_depth_adapts_to_the_image(rng: np.random.Generator, height: int, width: int, depth: int) -> None:
    net = lively(uf.models.UNetBN(2, 3, base_channels=4, depth=3), rng).eval()
    assert net.used_depth(height, width) == depth == min(3, int(np.log2(min(height, width))))
    x = draw(rng, 2, 2, height, width)
    expected = plain_adaptive(net, x, depth)
    assert tuple(expected.shape[2:]) == (height >> depth << depth, width >> depth << depth)
    actual = net(x)
    assert actual.shape == (2, 3, height, width) == (2, 3, *net.output_size((height, width)))
    torch.testing.assert_close(actual, F.interpolate(expected, (height, width), mode="bilinear"), **NETWORK_FLOAT32)
    net.train()(x).square().sum().backward()
    untouched = {
        name.split(".")[1] for name, p in net.named_parameters() if p.grad is None and name.startswith("levels")
    }
    assert untouched == {str(level) for level in range(depth + 1, 4)}


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("unet-bn", {"depth": 3}, 8),
        ("unet-bn", {"depth": 3}, 3),
        ("unet", {"depth": 3, "padding": "same", "norm": "batch"}, 8),
        ("unet++", {"depth": 3, "norm": "batch"}, 8),
        ("unet3+", {"depth": 3}, 8),
        ("unet-resnet18", {}, 32),
    ],
)
def test_batch_norm_cannot_train_on_one_value(name: str, options: dict[str, Any], side: int) -> None:
    net = uf.models.create(name, base_channels=4, **options)
    x = torch.zeros(1, 1, side, side)
    with pytest.raises(InputError, match=f"one image of {side} x {side} pixels leaves one pixel at the lowest level"):
        net(x)
    assert net(x.expand(2, -1, -1, -1)) is not None
    assert net.eval()(x).shape == (1, net.num_classes, side, side)


def test_dental_equals_plain_pytorch(rng: np.random.Generator) -> None:
    net = lively(uf.models.UNetDental(base_channels=4, depth=3), rng)
    x = draw(rng, 2, 1, 24, 40)
    plain, y, skips, maps = Plain(net), x, [], []
    for _ in range(3):
        y = plain.block(y, 1)
        skips.append(y)
        y = F.max_pool2d(y, 2)
    y = plain.block(y, 1)
    for _ in range(3):
        y = plain.up(y, padding=1)
        y = plain.block(torch.cat([skips.pop(), y], 1), 1)
        maps.append(y)
    expected = [plain.convolve(y, 0) for y in reversed(maps)]
    actual = net(x)
    assert isinstance(actual, HeadOutputs)
    assert [tuple(head.shape) for head in actual.heads] == [(2, 7, 24, 40), (2, 7, 12, 20), (2, 7, 6, 10)]
    for ours, theirs in zip(actual.heads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)
    assert actual.class_logits is None and actual.gates is None
    torch.testing.assert_close(net.eval()(x), actual.logits, **EXACT)
    assert all(layer.kernel_size == (4, 4) for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d))
