"""What every network of the family must do: sizes, gradients, layouts, dtypes, compiling, saving, tiling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unet_fast as uf
from tests.networks import grey, lively, short_resnets, small_networks, whole_image  # noqa: F401
from tests.tolerances import NETWORK_FLOAT32, NETWORK_LOW_PRECISION
from unet_fast.errors import InputError, InputTypeError
from unet_fast.models import HeadOutputs, SegmentationModel
from unet_fast.predict import OverlapTile

# narrow and shallow versions of every network, one entry for each way through its code
TINY: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"base_channels": 4, "depth": 2}),
    ("unet-2015-release", {"base_channels": 4, "depth": 2, "dropout": 0.0}),
    ("unet-em", {"base_channels": 4, "depth": 3}),
    ("unet-bn", {"base_channels": 4, "depth": 2}),
    ("unet-dental", {"base_channels": 4, "depth": 2}),
    ("unet++", {"base_channels": 4, "depth": 3}),
    ("unet++", {"base_channels": 4, "depth": 2, "num_classes": 3, "mode": "fast", "norm": "batch"}),
    ("unet++", {"base_channels": 4, "depth": 3, "prune": 2}),
    ("unet3+", {"base_channels": 4, "depth": 2}),
    ("unet3+", {"base_channels": 4, "depth": 1, "deep_supervision": False}),
    ("unet-resnet18", {"base_channels": 8}),
    ("unet-resnet50", {"base_channels": 8}),
]
EVERY = pytest.mark.parametrize(("name", "options"), TINY, ids=lambda value: value if isinstance(value, str) else None)


@pytest.fixture
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def pixels(net: SegmentationModel, more: int = 1) -> int:
    """A legal side with more than one pixel at the lowest level."""
    return net.geometry.smallest_output + 2 * net.margin + more * net.geometry.step


def tensors(output: Tensor | HeadOutputs) -> list[Tensor]:
    """Every tensor of an output."""
    if isinstance(output, Tensor):
        return [output]
    rest = [value for value in (output.class_logits, output.gates) if value is not None]
    return [*output.heads, *rest]


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("unet", {}, 31_030_658),
        ("unet-2015-release", {}, 31_100_354),
        # the U-Net's, one class instead of two, and two 3x3 convolutions of 64 channels
        ("unet-em", {}, 31_030_658 - 65 + 2 * (64 * 64 * 9 + 64)),
        # the U-Net's, one class instead of two; each of 18 convolutions trades its bias for a scale and a shift
        ("unet-bn", {}, 31_030_658 - 65 + 2 * (64 + 128 + 256 + 512) * 2 + 2 * 1024),
        # the U-Net's, 12 taps more in each up-convolution, heads of seven classes on 64, 128, 256 and 512 channels
        (
            "unet-dental",
            {},
            31_030_658 - 130 + 12 * 2 * (64**2 + 128**2 + 256**2 + 512**2) + 7 * (64 + 128 + 256 + 512) + 7 * 4,
        ),
        ("unet++", {"deep_supervision": False}, 9_041_601),
        ("unet++", {}, 9_041_601 + 3 * 33),
        ("unet3+", {"deep_supervision": False}, 26_970_625),
        ("unet3+", {}, 26_970_625 + 3 * (320 * 9 + 1) + 1024 * 9 + 1),
        ("unet3+", {"classification": True, "deep_supervision": False}, 26_970_625 + 2 * 1024 + 2),
    ],
)
def test_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(uf.models.create(name, **options)) == count


def test_the_registry_lists_the_family() -> None:
    assert set(uf.models.list()) >= {
        "unet",
        "unet-2015-release",
        "unet-em",
        "unet-bn",
        "unet-dental",
        "unet++",
        "unet3+",
        "unet-resnet18",
        "unet-resnet34",
        "unet-resnet50",
    }
    with torch.device("meta"):
        classes = {name: uf.models.create(name).num_classes for name in uf.models.list()}
        assert all(uf.models.create(name, num_classes=4).num_classes == 4 for name in uf.models.list())
    assert classes["unet"] == classes["unet-2015-release"] == 2
    assert classes["unet-dental"] == 7
    assert classes["unet-em"] == classes["unet-bn"] == classes["unet++"] == 1


@EVERY
def test_shapes_and_gradients(rng: np.random.Generator, name: str, options: dict[str, Any]) -> None:
    net = uf.models.create(name, in_channels=2, **options)
    side = pixels(net)
    height, width = side, side + net.geometry.step
    x = draw(rng, 2, 2, height, width)
    expected = (2, net.num_classes, *net.output_size((height, width)))
    output = net(x)
    assert isinstance(output, HeadOutputs) == (
        name in ("unet-dental", "unet++", "unet3+") and options.get("deep_supervision", True) and "prune" not in options
    )
    assert tuple(tensors(output)[0].shape) == expected
    torch.stack([(value - draw(rng, *value.shape)).square().mean() for value in tensors(output)]).sum().backward()
    silent = [layer.bias for layer in net.modules() if isinstance(layer, nn.Conv2d)] if name == "unet3+" else []
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        # a bias before a batch normalisation is cancelled by it
        assert parameter.grad.abs().max() > 0 or any(parameter is bias for bias in silent), key
    with torch.no_grad():
        assert tuple(net.eval()(x).shape) == expected
    assert net.input_size(net.output_size((height, width))) == (height, width)


@EVERY
def test_bad_input_is_refused(name: str, options: dict[str, Any]) -> None:
    net = uf.models.create(name, **options).eval()
    side = pixels(net)
    if net.geometry.any_from is None:
        with pytest.raises(InputError, match=f"width {side + 1} does not fit .* {side} and {side + net.geometry.step}"):
            net(torch.zeros(1, 1, side, side + 1))
        with pytest.raises(InputError, match=f"height 1 is too small .* {net.geometry.smallest_input}"):
            net(torch.zeros(1, 1, 1, side))
        with pytest.raises(InputError, match="legal output size"):
            net.input_size(net.output_size(side) + 1)
    else:
        with pytest.raises(InputError, match="width 0 is too small"):
            net(torch.zeros(1, 1, side, 0))
    with pytest.raises(InputError, match="3 channels.*expects 1"):
        net(torch.zeros(1, 3, side, side))
    with pytest.raises(InputTypeError, match="torch.float64 but the network's weights are torch.float32"):
        net(torch.zeros(1, 1, side, side, dtype=torch.float64))
    with pytest.raises(InputError, match="base_channels is 0, expected at least 1"):
        uf.models.create(name, **{**options, "base_channels": 0})
    with pytest.raises(InputError, match="has no option 'width'; its options are base_channels"):
        uf.models.create(name, width=3)


@EVERY
def test_config_and_state_dict_rebuild_the_network(
    rng: np.random.Generator, name: str, options: dict[str, Any]
) -> None:
    net = lively(uf.models.create(name, **options), rng).eval()
    config = json.loads(json.dumps(net.config))
    assert config["name"] == name
    again = uf.models.create(**config).eval()
    assert type(again) is type(net)
    assert again.config == net.config
    assert again.geometry == net.geometry
    x = draw(rng, 1, 1, pixels(net), pixels(net))
    with torch.no_grad():
        assert not torch.equal(again(x), net(x))
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x), net(x))


@EVERY
def test_channels_last(rng: np.random.Generator, name: str, options: dict[str, Any]) -> None:
    net = lively(uf.models.create(name, **options), rng).eval()
    x = draw(rng, 2, 1, pixels(net), pixels(net))
    # a hook takes the layer that it listens to out of its fused operator, and with it out of Winograd's algorithm
    with uf.ops.use_convolution("direct"):
        expected = net(x)
    net = net.to(memory_format=torch.channels_last)
    formats = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1 and layer.kernel_size == (3, 3):
            layer.register_forward_pre_hook(
                lambda module, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected, **NETWORK_FLOAT32)
    net.train()(x.to(memory_format=torch.channels_last))
    assert formats and all(formats)


@EVERY
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(rng: np.random.Generator, name: str, options: dict[str, Any], how: str) -> None:
    net = uf.models.create(name, **options)
    x = draw(rng, 2, 1, pixels(net), pixels(net))
    with torch.no_grad():
        exact = lively(net, rng).eval()(x)
    if how == "weights":
        net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        with torch.no_grad():
            actual = net(x)
        trained = net.train()(x)
    assert actual.dtype == torch.bfloat16
    error = (actual.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    layers = sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net.modules())
    # errors of independent layers add up like a random walk; the tolerance is that of a network of 10 layers
    assert error < NETWORK_LOW_PRECISION * max(1.0, layers / 10) ** 0.5
    torch.stack([value.float().square().mean() for value in tensors(trained)]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def as_shallow_as_can_be(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The depth from which on more levels are more of the same, since each of them is traced anew."""
    least = {"unet++": 2, "unet3+": 2}.get(name, 1)
    limits = {"depth": least, "prune": least - 1}
    return {key: min(value, limits[key]) if key in limits else value for key, value in options.items()}


@EVERY
@pytest.mark.usefixtures("clean_compiler", "short_resnets")
def test_compiles_without_graph_breaks(rng: np.random.Generator, name: str, options: dict[str, Any]) -> None:
    net = uf.models.create(name, **as_shallow_as_can_be(name, options))
    x = draw(rng, 2, 1, pixels(net), pixels(net))
    for training, backend in ((True, "aot_eager"), (False, "eager")):
        compiled = torch.compile(net.train(training), fullgraph=True, backend=backend)
        with torch.set_grad_enabled(training):
            expected, actual = net(x), compiled(x)
        assert type(actual) is type(expected)
        for ours, theirs in zip(tensors(actual), tensors(expected), strict=True):
            torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)


@EVERY
def test_tiles_equal_the_whole_image(rng: np.random.Generator, name: str, options: dict[str, Any]) -> None:
    net = lively(uf.models.create(name, **options), rng)
    image = grey(rng, 1, 1, 50, 39)
    result = OverlapTile(net, tile=24, batch_size=4)(image)
    np.testing.assert_allclose(result, whole_image(net, image), **NETWORK_FLOAT32)
    assert np.ptp(result[:, 0]) > 1e-3


@EVERY
def test_the_receptive_radius_is_what_moves(rng: np.random.Generator, name: str, options: dict[str, Any]) -> None:
    """Positive weights: every connection counts, so the reach is exactly the architecture's."""
    net = uf.models.create(name, **options).double().eval()
    with torch.no_grad():
        for key, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if key.endswith("weight"):
                tensor.copy_(torch.rand_like(tensor) + 0.1)
                tensor /= tensor[0].numel()
            elif not key.endswith("num_batches_tracked"):
                tensor.fill_(1.0 if key.endswith("running_var") else 0.0)
    for parent in list(net.modules()):
        for key, layer in parent.named_children():
            if isinstance(layer, nn.MaxPool2d):  # whose gradient would reach the largest pixel only
                setattr(parent, key, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    radius, step, margin = net.geometry.receptive_radius, net.geometry.step, net.margin
    length = pixels(net, 2 * (radius // step) + 4)
    x = torch.rand(1, 1, length, pixels(net, 0), dtype=torch.float64, requires_grad=True)
    rows = net(x).sum((0, 1, 3))
    centre = len(rows) // 2 // step * step
    reach = 0
    for row in range(centre, centre + step):
        (gradient,) = torch.autograd.grad(rows[row], x, retain_graph=True)
        seen = (gradient.abs().amax((0, 1, 3)) > 0).nonzero().flatten() - margin
        reach = max(reach, int((seen - row).abs().max()))
    assert reach == radius
