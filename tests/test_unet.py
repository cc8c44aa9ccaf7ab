"""The U-Net: its sizes, its initialisation, its forward and backward pass against plain PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unet_fast as uf
from tests.networks import grey, small_networks  # noqa: F401
from tests.tolerances import BY_DTYPE, NETWORK_FLOAT32, NETWORK_LOW_PRECISION
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models.blocks import Up, init_he


@pytest.fixture
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def plain_unet(net: uf.UNet, x: Tensor, padding: int = 0) -> Tensor:
    """The network as everyone writes it, with the weights of ``net``: functional layers, torch.cat of centre crops."""
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    ups = [layer for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)]
    queue = iter(convolutions)

    def block(y: Tensor) -> Tensor:
        for _ in range(2):
            layer = next(queue)
            y = F.relu(F.conv2d(y, layer.weight, layer.bias, padding=padding))
        return y

    skips = []
    for _ in ups:
        x = block(x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = block(x)
    for up in ups:
        x = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
        skip = skips.pop()
        top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
        x = torch.cat([skip[:, :, top : top + x.shape[2], left : left + x.shape[3]], x], dim=1)
        x = block(x)
    head = next(queue)
    return F.conv2d(x, head.weight, head.bias)


def images(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def test_the_default_is_the_network_of_the_paper() -> None:
    net = uf.UNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 31_030_658
    assert sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net.modules()) == 23
    assert net.output_size(572) == 388
    assert net.output_size(700) == 516
    assert net.input_size(388) == 572
    assert net.output_size((188, 572)) == (4, 388)
    assert net.margin == 92


def test_initial_weights_have_the_stated_spread() -> None:
    net = uf.UNet(in_channels=3, base_channels=32, depth=3)
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        # connections of one output neuron, counted: ones in, one tap each, at a pixel away from the border
        with torch.no_grad():
            ones = torch.ones(1, layer.in_channels, 5, 5)
            counted = type(layer)(layer.in_channels, 1, layer.kernel_size, stride=layer.stride, bias=False)
            counted.weight.fill_(1.0)
            output = counted(ones)
            connections = output[0, 0, output.shape[2] // 2, output.shape[3] // 2].item()
        weight = layer.weight.detach()
        expected = math.sqrt(2.0 / connections)
        # the standard deviation of n normal draws scatters by 1 / sqrt(2 n); the mean by 1 / sqrt(n)
        n = weight.numel()
        assert abs(weight.std().item() / expected - 1.0) < 5.0 / math.sqrt(2 * n)
        assert abs(weight.mean().item() / expected) < 5.0 / math.sqrt(n)
        assert layer.bias is not None
        assert (layer.bias == 0).all()


def test_initialisation_keeps_the_signal_alive(rng: np.random.Generator) -> None:
    """The point of N(0, 2 / N): activations neither vanish nor explode with depth."""
    net = uf.UNet(base_channels=16, depth=4)
    spread = net(images(rng, 1, 1, 204, 204)).std().item()
    assert 0.05 < spread < 20.0


def test_grouped_layers_count_their_own_inputs_only() -> None:
    layer = nn.Conv2d(64, 64, 3, groups=64)
    init_he(layer)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2.0 / 9.0), rel=0.2)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_forward_and_gradients_equal_plain_pytorch(rng: np.random.Generator, depth: int, padding: str) -> None:
    net = uf.UNet(in_channels=2, num_classes=3, base_channels=4, depth=depth, padding=padding)
    smallest, step = net.geometry.smallest_input, net.geometry.step
    height, width = (smallest + step * int(k) for k in rng.integers(0, 4, 2))
    x = images(rng, 2, 2, height, width).requires_grad_()
    actual = net(x)
    expected = plain_unet(net, x, padding=1 if padding == "same" else 0)
    assert tuple(actual.shape) == (2, 3, height - 2 * net.margin, width - 2 * net.margin)
    torch.testing.assert_close(actual, expected, **NETWORK_FLOAT32)
    grad = images(rng, *actual.shape)
    inputs = [x, *net.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((1, 44, 44), torch.float32, InputError, "3 dimensions"),
        ((1, 3, 44, 44), torch.float32, InputError, "3 channels.*expects 1"),
        ((1, 1, 46, 44), torch.float32, InputError, "height 46.*44 and 48"),
        ((1, 1, 44, 30), torch.float32, InputError, "width 30.*smallest legal input size is 44"),
        ((1, 1, 44, 44), torch.uint8, InputTypeError, "dtype uint8, expected one of float32"),
        ((1, 1, 44, 44), torch.float64, InputTypeError, "torch.float64 but the network's weights are torch.float32"),
    ],
)
def test_forward_refuses_bad_input(
    shape: tuple[int, ...], dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    net = uf.UNet(base_channels=2, depth=2)
    with pytest.raises(error, match=message):
        net(torch.zeros(shape, dtype=dtype))
    with pytest.raises(InputTypeError, match="images is a ndarray"):
        net(np.zeros((1, 1, 44, 44)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_channels": 0}, "base_channels is 0, expected at least 1"),
        ({"depth": 2.5}, "depth is 2.5, expected an int"),
        ({"in_channels": True}, "in_channels is True, expected an int"),
        ({"padding": "reflect"}, "padding is 'reflect', expected one of 'valid', 'same'"),
        ({"norm": "layer"}, "norm is 'layer', expected None or one of 'batch', 'instance', 'group'"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        uf.UNet(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [None, "batch", "instance", "group"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_gradients_reach_every_parameter(rng: np.random.Generator, norm: str | None, padding: str) -> None:
    net = uf.UNet(base_channels=4, depth=2, norm=norm, padding=padding, dropout=0.1)
    size = net.geometry.smallest_input + 4 * net.geometry.step
    loss = net(images(rng, 2, 1, size, size)).square().mean()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_instance_norm_states_that_it_needs_two_pixels_at_the_bottom() -> None:
    net = uf.UNet(base_channels=2, depth=2, norm="instance", padding="same")
    with pytest.raises(InputError, match="smallest legal input size is 8"):
        net(torch.zeros(1, 1, 4, 8))
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_group_norm_divides_any_width() -> None:
    for width in (1, 3, 6, 20):
        net = uf.UNet(base_channels=width, depth=1, norm="group", padding="same")
        assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_dropout_acts_in_training_only_and_at_the_lowest_level(rng: np.random.Generator) -> None:
    net = uf.UNet(base_channels=4, depth=2, dropout=0.5)
    x = images(rng, 1, 1, 60, 60)
    assert not torch.equal(net(x), net(x))
    zeros = []
    net.dropout.register_forward_hook(lambda module, args, out: zeros.append((out == 0) & (args[0] != 0)))
    net(x)
    kept = net.bottom(net.down[1](net.down[0](x)[1])[1]) != 0
    assert 0.3 < zeros[0].sum() / kept.sum() < 0.7
    net.eval()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x), plain_unet(net, x), **NETWORK_FLOAT32)


@pytest.mark.parametrize("extra", [0, 1, 2, 3, 5])
def test_an_odd_skip_is_cropped_at_the_far_side(rng: np.random.Generator, extra: int) -> None:
    block = Up(6, 3, 3)
    x, skip = images(rng, 1, 6, 4, 5), images(rng, 1, 3, 8 + extra, 10 + extra)
    start = extra // 2
    expected = block.block(torch.cat([skip[:, :, start : start + 8, start : start + 10], block.up(x)], dim=1))
    torch.testing.assert_close(block(x, skip), expected, **BY_DTYPE[torch.float32])


def test_crop_concat_layer_is_torch_cat(rng: np.random.Generator) -> None:
    layer = uf.nn.CropConcat()
    skip, up = images(rng, 2, 3, 9, 8, 7), images(rng, 2, 2, 4, 4, 4)
    assert torch.equal(layer(skip, up), torch.cat([skip[:, :, 2:6, 2:6, 1:5], up], dim=1))
    assert not list(layer.parameters())


def test_channels_last_gives_the_same_in_its_own_layout(rng: np.random.Generator) -> None:
    net = uf.UNet(base_channels=4, depth=2)
    x = images(rng, 2, 1, 60, 76)
    expected = net(x)
    net = net.to(memory_format=torch.channels_last)
    seen = []
    net.up[0].block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    actual = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, **NETWORK_FLOAT32)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(rng: np.random.Generator, how: str, layout: torch.memory_format) -> None:
    net = uf.UNet(base_channels=4, depth=2).to(memory_format=layout)
    x = images(rng, 1, 1, 60, 60)
    expected = net(x).detach()
    if how == "weights":
        net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        actual = net(x)
    assert actual.dtype == torch.bfloat16
    error = (actual.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < NETWORK_LOW_PRECISION
    actual.float().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize(("norm", "dynamic"), [(None, False), ("batch", True)])
def test_compiles_without_graph_breaks(
    rng: np.random.Generator, clean_compiler: None, norm: str | None, dynamic: bool
) -> None:
    net = uf.UNet(base_channels=4, depth=1, norm=norm).eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for height, width in ((28, 44), (42, 36)):
        x = images(rng, 1, 1, height, width)
        actual, expected = compiled(x), net(x)
        torch.testing.assert_close(actual, expected, **NETWORK_FLOAT32)
        parameters = list(net.parameters())
        for ours, theirs in zip(
            torch.autograd.grad(actual.sum(), parameters),
            torch.autograd.grad(expected.sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)


@torch.inference_mode()
def test_compiles_with_inductor(rng: np.random.Generator, clean_compiler: None) -> None:
    net = uf.UNet(base_channels=4, depth=1)
    compiled = torch.compile(net, fullgraph=True)
    x = images(rng, 1, 1, 20, 22)
    torch.testing.assert_close(compiled(x), net(x), **NETWORK_FLOAT32)


def test_compiled_network_refuses_bad_sizes_too(clean_compiler: None) -> None:
    compiled = torch.compile(uf.UNet(base_channels=4, depth=2), backend="aot_eager")
    with pytest.raises(InputError, match="44 and 48"):
        compiled(torch.zeros(1, 1, 46, 44))


def test_state_dict_round_trip(rng: np.random.Generator) -> None:
    net = uf.UNet(base_channels=4, depth=2, norm="batch")
    x = images(rng, 2, 1, 60, 60)
    net(x)  # moves the running statistics
    other = uf.UNet(base_channels=4, depth=2, norm="batch")
    assert not torch.equal(net.eval()(x), other.eval()(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_channels": 3, "num_classes": 5, "base_channels": 4, "depth": 2, "padding": "same", "norm": "group"},
        {"base_channels": 2, "depth": 1, "dropout": 0.25},
    ],
)
def test_config_rebuilds_the_network(options: dict[str, object]) -> None:
    with torch.device("meta"):
        net = uf.UNet(**options)  # type: ignore[arg-type]
        config = json.loads(json.dumps(net.config))
        again = uf.models.create(**config)
    assert isinstance(again, uf.UNet)
    assert again.config == net.config
    assert config["name"] == "unet"
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.geometry == net.geometry
    assert again.dropout.p == net.dropout.p


def test_the_registry_names_what_it_knows() -> None:
    assert "unet" in uf.models.list()
    with pytest.raises(InputError, match="model is 'vnet', expected one of .*'unet'"):
        uf.models.create("vnet")
    with pytest.raises(InputError, match="'unet' has no option 'width'; its options are base_channels, depth"):
        uf.models.create("unet", width=3)


# --- a coarser resolution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_network_is_the_network_between_means_and_interpolation(rng, factor):
    net = uf.UNet(2, 3, base_channels=4, depth=2, padding="same", downsample=factor, norm="batch").double().eval()
    fine = uf.UNet(2, 3, base_channels=4, depth=2, padding="same", norm="batch").double().eval()
    fine.load_state_dict(net.state_dict())
    x = images(rng, 2, 2, 16 * factor, 24 * factor).double()
    means = x.unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2))
    logits = F.interpolate(fine(means), scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(x), logits, rtol=1e-9, atol=1e-9)
    target = torch.from_numpy(rng.integers(0, 3, (2, 16 * factor, 24 * factor)))
    torch.testing.assert_close(net.loss(x, target), F.cross_entropy(logits, target), rtol=1e-5, atol=1e-6)
    assert uf.models.create(**net.config).downsample == factor
    assert net.input_size(8 * factor) == 8 * factor
    with pytest.raises(InputError, match=f"nearest legal input sizes are {4 * factor} and {8 * factor}"):
        net(torch.zeros(1, 2, 8 * factor, 4 * factor + 2).double())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_receptive_field_of_a_coarser_network(rng, factor):
    net = uf.UNet(base_channels=3, depth=1, padding="same", downsample=factor, fused=False).double().eval()
    farthest = 0
    for position in range(2 * factor):
        x = images(rng, 1, 1, 32 * factor, 8 * factor).double().requires_grad_()
        at = 16 * factor + position
        net(x)[0, :, at].abs().sum().backward()
        rows = x.grad[0, 0].abs().sum(1).nonzero()
        farthest = max(farthest, at - int(rows.min()), int(rows.max()) - at)
    assert net.geometry.receptive_radius == farthest


def test_a_coarser_network_refuses_what_it_cannot_do():
    for factor in (0, 3, 16, "2"):
        with pytest.raises(InputError, match="downsample is .*expected one of 1, 2, 4, 8"):
            uf.UNet(padding="same", downsample=factor)
    with pytest.raises(InputError, match="downsample is 2, which needs padding='same', but padding is 'valid'"):
        uf.UNet(downsample=2)
    net = uf.UNet(base_channels=2, depth=1, padding="same", norm="batch", downsample=4)
    with pytest.raises(InputError, match="leaves one pixel at the lowest level"):
        net(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_norms_in_one_operator_are_those_of_torch(rng, norm):
    """Outputs, gradients and running statistics of a network whose norms run with their ReLUs equal those of plain layers."""
    fused = uf.UNet(base_channels=4, depth=2, padding="same", norm=norm, fused=True).double()
    plain = uf.UNet(base_channels=4, depth=2, padding="same", norm=norm, fused=False).double()
    plain.load_state_dict(fused.state_dict())
    x = images(rng, 2, 1, 24, 32).double()
    for training in (True, False):  # the gradient behind fixed statistics is another one
        for net in (fused, plain):
            net.train(training).zero_grad()
            (net(x) ** 2).sum().backward()
        for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-9 * scale)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-8, atol=1e-8)
