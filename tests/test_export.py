"""Networks with fused junctions through torch.export and torch.compile."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import unet_fast as uf
from tests import peers
from tests.networks import lively, small_networks  # noqa: F401
from tests.tolerances import NETWORK_FLOAT32

# the lowest level has 16 channels, from which on a CPU uses Winograd's algorithm
FUSED_IN_EVAL = {"conv_bias_relu", "conv3x3", "relu_pool_skip", "up_conv_crop_concat"}
SMALL = {"base_channels": 4, "depth": 2, "fused": True}
MODELS = [("unet", 44, {}), ("unet", 12, {"padding": "same", "norm": "batch"}), ("unet-2015-release", 44, {})]


@pytest.fixture(autouse=True)
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(name: str, rng: np.random.Generator, **options: object) -> uf.models.SegmentationModel:
    return lively(uf.models.create(name, in_channels=2, **{**SMALL, **options}), rng).eval()


def operators(program: torch.export.ExportedProgram) -> set[str]:
    targets = [str(node.target) for node in program.graph.nodes]
    return {target.split(".")[1] for target in targets if target.startswith("unet_fast.")}


def reloaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize(("name", "size", "options"), MODELS, ids=lambda value: str(value))
def test_an_exported_network_is_saved_and_loaded(name, size, options, rng, generator):
    net = build(name, rng, **options)
    x = torch.randn(1, 2, size, size + 8, generator=generator)
    program = torch.export.export(net, (x,))
    found = FUSED_IN_EVAL - {"conv_bias_relu"} | {"norm_activation"} if "norm" in options else FUSED_IN_EVAL
    if name == "unet-2015-release":
        # its up-sampled map passes a ReLU before it is joined, by torch.cat: nothing is cut off
        found = {name for name in found if "concat" not in name}
    assert operators(program) == found
    with torch.no_grad():
        expected = net(x)
        for other in (program, reloaded(program), program.run_decompositions()):
            torch.testing.assert_close(other.module()(x), expected, **NETWORK_FLOAT32)


@pytest.mark.parametrize(("name", "size", "options"), MODELS[:1], ids=lambda value: str(value))
def test_an_exported_network_takes_other_sizes(name, size, options, rng, generator):
    """The sizes of the skips are computed from that of the image, also in the graph."""
    net = build(name, rng, **options)
    automatic = torch.export.Dim.AUTO
    x = torch.randn(2, 2, size, size + 8, generator=generator)
    program = reloaded(torch.export.export(net, (x,), dynamic_shapes={"x": {0: automatic, 2: automatic, 3: automatic}}))
    for shape in ((3, 2, size + 16, size + 4), (2, 2, size, size)):
        other = torch.randn(shape, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(other), net(other), **NETWORK_FLOAT32)


def test_a_compiled_training_step_without_graph_breaks(rng, generator):
    net = build("unet", rng, num_classes=3).train()
    x = torch.randn(1, 2, 44, 44, generator=generator)
    target = torch.randint(0, 3, (1, 4, 4), generator=generator)
    weight = torch.rand(1, 4, 4, generator=generator)
    expected = net.loss(x, target, weight)
    truth = torch.autograd.grad(expected, list(net.parameters()))
    loss = torch.compile(net.loss, fullgraph=True)(x, target, weight)
    torch.testing.assert_close(loss, expected, **NETWORK_FLOAT32)
    for got, want in zip(torch.autograd.grad(loss, list(net.parameters())), truth, strict=True):
        torch.testing.assert_close(got, want, **NETWORK_FLOAT32)


@pytest.mark.parametrize(("name", "depth"), [("unet-bn", 1), ("unet++", 2), ("unet-dental", 1)])
def test_the_other_networks_compile_without_graph_breaks(name, depth, rng, generator):
    """Traced through autograd; the code generator is left out, which sees nothing of these networks but more of the same."""
    net = build(name, rng, depth=depth).train()
    x = torch.randn(1, 2, 12, 8, generator=generator)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    outputs, expected = compiled(x), net(x)
    heads = [(out,) if isinstance(out, torch.Tensor) else out.heads for out in (outputs, expected)]
    for got, want in zip(*heads, strict=True):
        torch.testing.assert_close(got, want, **NETWORK_FLOAT32)
    gradients = [
        torch.autograd.grad(sum(head.square().sum() for head in each), list(net.parameters()), allow_unused=True)
        for each in heads
    ]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, **NETWORK_FLOAT32)


class Observed(torch.fx.Interpreter):
    """Runs an exported graph as a quantiser's observers do: the range of every result, at the moment that it is made."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__(program.module())
        self.ranges: dict[torch.fx.Node, tuple[float, float]] = {}
        self.quantises = False

    def run_node(self, node: torch.fx.Node) -> object:
        result = super().run_node(node)
        if node.op != "call_function" or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        if not self.quantises:
            self.ranges[node] = (min(result.min().item(), 0.0), max(result.max().item(), 0.0))
            return result
        low, high = self.ranges[node]
        scale = max(high - low, 1e-6) / 255
        return torch.fake_quantize_per_tensor_affine(result, scale, round(-low / scale), 0, 255)


@pytest.mark.parametrize("accelerated", [False, True])
def test_int8_by_export_is_calibrated_with_what_is_computed(accelerated, rng, generator):
    """No buffer is filled behind the quantiser's back: what it sees of a map is what the next layer reads."""
    x = torch.randn(1, 2, 44, 52, generator=generator)
    if accelerated:
        net = torch.nn.Sequential(peers.Milesial(in_channels=2, base=16, depth=1)).eval()
        x = x[:, :, :40, :48]
        uf.accelerate(net, x)
    else:
        net = build("unet", rng)
    observed = Observed(torch.export.export(net, (x,)))
    with torch.no_grad():
        truth = net(x)
        plain = observed.run(x)
        observed.quantises = True
        got = observed.run(x)
    (plain,), (got,) = ((one,) if isinstance(one, torch.Tensor) else one for one in (plain, got))
    torch.testing.assert_close(plain, truth, **NETWORK_FLOAT32)
    assert len(observed.ranges) > 8
    off = (got - truth).square().mean().sqrt() / truth.std()
    assert 0 < off < 0.1, off
