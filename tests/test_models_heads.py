"""UNet++ and UNet 3+: their wiring against plain PyTorch, their heads, pruning, and the gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unet_fast as uf
from tests.networks import lively, small_networks  # noqa: F401
from tests.tolerances import BY_DTYPE, EXACT, NETWORK_FLOAT32
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models import HeadOutputs, UNet3Plus, UNetPlusPlus
from unet_fast.models.heads import gated_logits, mean_logits
from unet_fast.predict import OverlapTile


def draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * scale


def probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def trained(net: UNetPlusPlus | UNet3Plus, x: Tensor) -> HeadOutputs:
    """The outputs of training mode."""
    output = net.train()(x)
    assert isinstance(output, HeadOutputs)
    return output


@pytest.mark.parametrize("num_classes", [1, 4])
def test_mean_logits_have_the_mean_probability(rng: np.random.Generator, num_classes: int) -> None:
    heads = tuple(draw(rng, 2, num_classes, 5, 6, scale=4.0).double() for _ in range(3))
    mean = torch.stack([probabilities(head) for head in heads]).mean(0)
    torch.testing.assert_close(probabilities(mean_logits(heads)), mean, **BY_DTYPE[torch.float64])
    torch.testing.assert_close(probabilities(mean_logits(heads[:1])), probabilities(heads[0]))
    for dtype in (torch.float16, torch.bfloat16):
        sure = tuple(torch.full((1, num_classes, 2, 2), value, dtype=dtype) for value in (100.0, -100.0, 100.0))
        result = mean_logits(sure)
        assert result.dtype == dtype and torch.isfinite(result).all()
        if num_classes == 1:
            torch.testing.assert_close(result.float().sigmoid(), torch.full((1, 1, 2, 2), 2 / 3), **BY_DTYPE[dtype])


@pytest.mark.parametrize("num_classes", [1, 4])
def test_gated_logits_scale_the_foreground_probability(rng: np.random.Generator, num_classes: int) -> None:
    logits, gate = draw(rng, 3, num_classes, 4, 5, scale=4.0).double(), draw(rng, 3, scale=3.0).double()
    gated, before = probabilities(gated_logits(logits, gate)), probabilities(logits)
    foreground = before if num_classes == 1 else before[:, 1:]
    expected = foreground * gate.sigmoid().view(-1, 1, 1, 1)
    torch.testing.assert_close(gated if num_classes == 1 else gated[:, 1:], expected, **BY_DTYPE[torch.float64])
    for dtype in (torch.float16, torch.bfloat16):
        for value in (-100.0, 100.0):
            for opened in (-100.0, 100.0):
                closed = gated_logits(
                    torch.full((1, num_classes, 1, 1), value, dtype=dtype), torch.tensor([opened], dtype=dtype)
                )
                assert closed.dtype == dtype and torch.isfinite(closed).all()
                if opened < 0:
                    assert (probabilities(closed.float())[:, -1] < 1e-6).all()


def plain_nested(net: UNetPlusPlus, x: Tensor) -> dict[int, Tensor]:
    """Every X(0, j), j >= 1, of UNet++ through its definition, node by node, with the weights of ``net``."""

    def block(layers: nn.Module, y: Tensor) -> Tensor:
        for layer in layers.modules():
            if isinstance(layer, nn.Conv2d):
                y = F.relu(F.conv2d(y, layer.weight, layer.bias, padding=1))
        return y

    def node(i: int, j: int) -> Tensor:
        if j == 0:
            return block(net.encoder[i], x if i == 0 else F.max_pool2d(node(i - 1, 0), 2))
        part = net.nodes[f"{i}_{j}"]
        up = F.conv_transpose2d(node(i + 1, j - 1), part.up.weight, part.up.bias, stride=2)
        return block(part.block, torch.cat([*(node(i, k) for k in range(j)), up], 1))

    return {j: node(0, j) for j in range(1, net.last + 1)}


def test_nested_network_equals_its_definition(rng: np.random.Generator) -> None:
    net = lively(UNetPlusPlus(2, 3, base_channels=4, depth=3), rng)
    x = draw(rng, 2, 2, 16, 24)
    maps = plain_nested(net, x)
    expected = [F.conv2d(maps[j], net.heads[str(j)].weight, net.heads[str(j)].bias) for j in (3, 2, 1)]
    actual = trained(net, x)
    for ours, theirs in zip(actual.heads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)
    accurate = net.eval()(x)
    mean = torch.stack([head.softmax(1) for head in expected]).mean(0)
    torch.testing.assert_close(accurate.softmax(1), mean, **NETWORK_FLOAT32)
    fast = UNetPlusPlus(2, 3, base_channels=4, depth=3, mode="fast")
    fast.load_state_dict(net.state_dict())
    torch.testing.assert_close(fast.eval()(x), expected[0], **NETWORK_FLOAT32)


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_pruning_removes_weights_and_work_and_keeps_the_head(
    rng: np.random.Generator, level: int, norm: str | None
) -> None:
    full = lively(UNetPlusPlus(base_channels=4, depth=3, norm=norm), rng).eval()
    small = full.pruned(level)
    assert not small.training and small.config["prune"] == level
    assert small.geometry.step == 2**level
    x = draw(rng, 2, 1, 32, 24)
    heads = {}
    for j, head in full.heads.items():
        head.register_forward_hook(lambda module, args, out, j=j: heads.update({int(j): out}))
    with FlopCounterMode(display=False) as all_work:
        full(x)
    with FlopCounterMode(display=False) as less_work:
        actual = small(x)
    torch.testing.assert_close(actual, heads[level], **EXACT)
    kept = {f"{i}_{j}" for j in range(1, level + 1) for i in range(level + 1 - j)}
    assert set(small.nodes) == kept and len(small.encoder) == level + 1 and set(small.heads) == {str(level)}
    assert set(small.state_dict()) < set(full.state_dict())
    if level == 1:
        assert less_work.get_total_flops() < 0.3 * all_work.get_total_flops()
    # a copy: what happens to one does not happen to the other
    with torch.no_grad():
        next(small.parameters()).zero_()
    assert next(full.parameters()).abs().max() > 0


def test_pruned_to_the_first_level_little_is_left() -> None:
    def size_and_work(**options: int) -> tuple[int, int]:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = uf.models.create("unet++", **options).eval()
            net(torch.empty(1, 1, 256, 256))
        return sum(p.numel() for p in net.parameters()), counter.get_total_flops()

    weights, work = size_and_work()
    fewer_weights, less_work = size_and_work(prune=1)
    assert fewer_weights < 0.02 * weights and less_work < 0.15 * work


def test_full_weights_load_into_a_network_that_is_built_pruned(rng: np.random.Generator) -> None:
    full = lively(UNetPlusPlus(base_channels=4, depth=3), rng).to(torch.bfloat16)
    small = uf.models.create("unet++", base_channels=4, depth=3, prune=2)
    assert isinstance(small, UNetPlusPlus)
    small.load_unpruned(full.state_dict())
    assert all(torch.equal(value, full.state_dict()[name].float()) for name, value in small.state_dict().items())
    assert next(full.pruned(1).parameters()).dtype == torch.bfloat16
    with pytest.raises(InputError, match="no 'heads.2.weight', which level 2 needs; .* without deep_supervision"):
        small.load_unpruned(UNetPlusPlus(base_channels=4, depth=3, deep_supervision=False).state_dict())
    with pytest.raises(InputError, match=r"'encoder.0.0.weight' of shape \(8, 1, 3, 3\), this network needs \(4, 1"):
        small.load_unpruned(UNetPlusPlus(base_channels=8, depth=3).state_dict())
    with pytest.raises(InputError, match="no 'encoder.2.0.weight', which level 2 needs$"):
        small.load_unpruned(full.pruned(1).state_dict())
    with pytest.raises(InputError, match="prune is 4, expected None or a level from 1 to the depth, 3"):
        full.pruned(4)
    with pytest.raises(InputError, match="prune is 0, expected at least 1"):
        UNetPlusPlus(prune=0)
    with pytest.raises(InputError, match="mode is 'best', expected one of 'accurate', 'fast'"):
        UNetPlusPlus(mode="best")
    with pytest.raises(InputTypeError, match="deep_supervision is 1, expected True or False"):
        UNetPlusPlus(deep_supervision=1)  # type: ignore[arg-type]


def plain_full_scale(net: UNet3Plus, x: Tensor) -> list[Tensor]:
    """Decoder maps of UNet 3+ from the finest to the lowest level, through its definition, in eval mode."""

    def block(layers: nn.Module, y: Tensor) -> Tensor:
        for layer in layers.modules():
            if isinstance(layer, nn.Conv2d):
                y = F.conv2d(y, layer.weight, layer.bias, padding=1)
            elif isinstance(layer, nn.BatchNorm2d):
                y = F.relu(F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias))
        return y

    encoder = []
    for level, layers in enumerate(net.encoder):
        x = block(layers, F.max_pool2d(x, 2) if level else x)
        encoder.append(x)
    maps = {net.depth: x}
    for level in reversed(range(net.depth)):
        size = encoder[level].shape[2:]
        branches = []
        for k, branch in enumerate(net.decoder[level].branches):
            if k < level:
                y = F.max_pool2d(encoder[k], 2 ** (level - k), ceil_mode=True)
            elif k == level:
                y = encoder[k]
            else:
                y = F.interpolate(maps[k], size, mode="bilinear")
            branches.append(block(branch, y))
        maps[level] = block(net.decoder[level].fuse, torch.cat(branches, 1))
    return [maps[level] for level in range(net.depth + 1)]


def test_full_scale_network_equals_its_definition(rng: np.random.Generator) -> None:
    net = lively(UNet3Plus(2, 3, base_channels=4, depth=3), rng).eval()
    x = draw(rng, 2, 2, 16, 24)
    expected = [
        F.interpolate(F.conv2d(y, head.weight, head.bias, padding=1), (16, 24), mode="bilinear")
        for y, head in zip(plain_full_scale(net, x), [net.head, *net.auxiliary], strict=True)
    ]
    torch.testing.assert_close(net(x), expected[0], **NETWORK_FLOAT32)
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    actual = net(x)
    assert isinstance(actual, HeadOutputs) and actual.class_logits is None
    assert len(actual.heads) == 4
    for ours, theirs in zip(actual.heads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_classification_guides_in_eval_mode_and_learns_in_training_mode(
    rng: np.random.Generator, num_classes: int
) -> None:
    net = UNet3Plus(1, num_classes, base_channels=4, depth=2, classification=True, deep_supervision=False)
    assert isinstance(net.classify, nn.Sequential)
    x = draw(rng, 2, 1, 16, 16)
    output = trained(net, x)
    assert output.class_logits is not None and output.gates is not None and not output.auxiliary
    assert output.logits.shape == (2, num_classes, 16, 16) and output.class_logits.shape == (2, 2)
    torch.testing.assert_close(output.gates, output.class_logits.sigmoid(), **EXACT)
    F.binary_cross_entropy_with_logits(output.class_logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).backward()
    assert net.classify[1].weight.grad is not None and net.classify[1].weight.grad.abs().max() > 0
    assert net.encoder[0][0].weight.grad is not None  # and the encoder learns with it
    # the gate shut: no foreground anywhere; wide open: nothing changes
    net.eval()
    shown = {}
    net.head.register_forward_hook(lambda module, args, out: shown.update(logits=out))
    with torch.no_grad():
        for bias, open_ in ((-60.0, 0.0), (60.0, 1.0)):
            net.classify[1].bias.fill_(bias)
            after = probabilities(net(x))
            before = probabilities(shown["logits"])
            first = 0 if num_classes == 1 else 1
            torch.testing.assert_close(after[:, first:], before[:, first:] * open_, **NETWORK_FLOAT32)
    with pytest.warns(UserWarning, match="decides from its whole input whether there is any foreground"):
        OverlapTile(net, tile=8)(np.zeros((20, 9), np.float32))


@pytest.mark.parametrize("name", ["unet-dental", "unet++", "unet3+"])
def test_every_supervised_head_learns(rng: np.random.Generator, name: str) -> None:
    net = uf.models.create(name, num_classes=1, base_channels=8, depth=3)
    x = draw(rng, 4, 1, 32, 32)
    target = F.avg_pool2d(x, 9, 1, 4).gt(0).float()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    history = []
    for _ in range(25):
        heads = net(x).heads
        losses = torch.stack([F.binary_cross_entropy_with_logits(y, F.interpolate(target, y.shape[2:])) for y in heads])
        history.append(losses.detach())
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    assert len(history[0]) == {"unet-dental": 3, "unet++": 3, "unet3+": 4}[name]
    assert (history[-1] < 0.75 * history[0]).all(), (history[0], history[-1])
