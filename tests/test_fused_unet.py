"""Networks with fused junctions against the same networks layer by layer: outputs, gradients, and what may go wrong in place."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import unet_fast as uf
from tests.devices import DEVICES
from tests.networks import lively, small_networks  # noqa: F401
from tests.tolerances import EXACT, NETWORK_ERROR_FLOOR, NETWORK_ERROR_RATIO, NETWORK_FLOAT64, NETWORK_MEAN_ERROR_RATIO
from unet_fast.errors import InputError
from unet_fast.models import fusion
from unet_fast.models.blocks import SkipBuffer
from unet_fast.ops import conv_bias_relu, use_backend, weighted_cross_entropy

SMALL = {"base_channels": 4, "depth": 2}
NETWORKS: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("unet", {**SMALL}, (44, 52)),
    ("unet", {**SMALL, "padding": "same"}, (12, 8)),
    ("unet", {**SMALL, "norm": "batch"}, (44, 44)),
    ("unet", {**SMALL, "padding": "same", "norm": "instance"}, (12, 16)),
    ("unet", {**SMALL, "padding": "same", "norm": "group"}, (8, 12)),
    ("unet", {**SMALL, "dropout": 0.5}, (44, 48)),
    ("unet", {"base_channels": 3, "depth": 3, "num_classes": 5}, (92, 92)),
    ("unet-2015-release", {**SMALL}, (44, 48)),
    ("unet-em", {**SMALL, "num_classes": 2}, (52, 48)),
    ("unet-dental", {**SMALL}, (12, 8)),
    ("unet-bn", {**SMALL}, (12, 8)),
    ("unet-bn", {**SMALL}, (13, 10)),
    ("unet++", {**SMALL}, (12, 8)),
    ("unet++", {**SMALL, "norm": "batch", "deep_supervision": False}, (8, 8)),
    ("unet3+", {**SMALL, "classification": True}, (12, 8)),
    ("unet-resnet18", {"base_channels": 4}, (64, 32)),
]
IDS = [f"{name}-{'-'.join(str(value) for value in options.values())}-{size[0]}" for name, options, size in NETWORKS]


def build(name: str, options: dict[str, Any], rng, device: str = "cpu", **layout: Any) -> uf.models.SegmentationModel:
    net = uf.models.create(name, in_channels=2, **options)
    return lively(net, rng).to(device, **layout)


def images(generator: torch.Generator, size: tuple[int, int], device: str = "cpu", **layout: Any) -> Tensor:
    return torch.randn(2, 2, *size, generator=generator).to(device, **layout)


def run(net: uf.models.SegmentationModel, x: Tensor, fused: bool | str) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """All outputs, and the gradients of the images and of every parameter, of a sum in which no two pixels count alike."""
    net.fused = fused
    torch.manual_seed(7)  # of dropout
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = net(x)
    heads = (out,) if isinstance(out, Tensor) else out.heads
    weights = [torch.linspace(-1, 1, head.numel(), device=x.device).view(head.shape) for head in heads]
    loss = sum((head.double() * weight).sum() for head, weight in zip(heads, weights, strict=True))
    parameters = list(net.parameters())
    grads = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
    return heads, [torch.zeros(0) if grad is None else grad for grad in grads]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", NETWORKS, ids=IDS)
def test_outputs_and_gradients_are_those_of_the_plain_network(case, channels_last, training, device, rng, generator):
    layout = {"dtype": torch.float64}
    if channels_last:
        layout["memory_format"] = torch.channels_last
    net = build(*case[:2], rng, device, **layout).train(training)
    x = images(generator, case[2], device, **layout)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    plain, plain_grads = run(net, x, False)
    moved = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    fused, fused_grads = run(net, x, True)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, **NETWORK_FLOAT64)
    for a, b in zip(fused_grads, plain_grads, strict=True):
        torch.testing.assert_close(a, b, **NETWORK_FLOAT64)
    torch.testing.assert_close(net.state_dict(), moved, **NETWORK_FLOAT64)  # running statistics
    assert list(net.state_dict()) == list(state)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
def test_in_lower_precision_both_are_as_near_to_float64(mode, padding, device, rng, generator):
    net = build("unet", {"base_channels": 8, "depth": 2, "padding": padding}, rng, device)
    # so many pixels that one ReLU that rounding turns on or off does not decide a gradient
    x = images(generator, (92, 92), device)
    truth, truth_grads = run(net.double(), x.double(), False)
    context = nullcontext()
    if mode == "bfloat16":
        net, x = net.bfloat16(), x.bfloat16()
    else:
        net = net.float()
        context = torch.autocast(device, torch.bfloat16, enabled=mode == "autocast")
    with context:
        fused, fused_grads = run(net, x, True)
        plain, plain_grads = run(net, x, False)
    assert fused[0].dtype == (torch.float32 if mode == "float32" else torch.bfloat16)
    ratios = []
    for a, b, exact in zip([*fused, *fused_grads], [*plain, *plain_grads], [*truth, *truth_grads], strict=True):
        assert a.dtype == b.dtype
        error, plain_error = ((value.double() - exact).square().mean().sqrt() for value in (a, b))
        floor = NETWORK_ERROR_FLOOR * exact.square().mean().sqrt()
        assert error < NETWORK_ERROR_RATIO * plain_error + floor
        ratios.append((error + floor) / (plain_error + floor))
    assert torch.stack(ratios).log().mean().exp() < NETWORK_MEAN_ERROR_RATIO


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "weight_mean", "sum"])
@pytest.mark.parametrize("name", ["unet", "unet-2015-release", "unet-em"])
def test_the_loss_is_that_of_the_logits(name, reduction, device, rng, generator):
    net = build(name, {**SMALL, "num_classes": 3}, rng, device, dtype=torch.float64).eval()
    x = images(generator, (52, 56) if name == "unet-em" else (44, 48), device, dtype=torch.float64)
    size = net.output_size(tuple(x.shape[2:]))
    target = torch.randint(0, 3, (2, *size), generator=generator).to(device)
    target[0, 0, :2] = 9
    weight = torch.rand(2, *size, generator=generator).to(device) + 0.1
    net.fused = False
    expected = weighted_cross_entropy(net(x), target, weight, ignore_index=9, reduction=reduction)
    truth = torch.autograd.grad(expected, list(net.parameters()))
    for fused in (False, True):
        net.fused = fused
        loss = net.loss(x, target, weight, ignore_index=9, reduction=reduction)
        torch.testing.assert_close(loss, expected, **NETWORK_FLOAT64)
        for a, b in zip(torch.autograd.grad(loss, list(net.parameters())), truth, strict=True):
            torch.testing.assert_close(a, b, **NETWORK_FLOAT64)


def test_a_sigmoid_network_has_no_softmax_loss():
    net = uf.UNet(num_classes=1, **SMALL)
    with pytest.raises(InputError, match="one output channel"):
        net.loss(torch.zeros(1, 1, 44, 44), torch.zeros(1, 4, 4, dtype=torch.int64))


def fused_net(rng, **options: Any) -> uf.UNet:
    net = build("unet", {**SMALL, **options}, rng, dtype=torch.float64)
    assert isinstance(net, uf.UNet)
    net.fused = True
    return net


def test_two_forwards_before_a_backward_and_accumulated_gradients(rng, generator):
    """Each forward writes its own buffers: the second leaves what the first has kept alone."""
    net = fused_net(rng)
    first, second = images(generator, (44, 44), dtype=torch.float64), images(generator, (44, 44), dtype=torch.float64)
    expected = [torch.autograd.grad(net(x).sum(), list(net.parameters())) for x in (first, second)]
    a, b = net(first), net(second)
    net.zero_grad()
    b.sum().backward()
    a.sum().backward(retain_graph=True)
    for parameter, one, two in zip(net.parameters(), *expected, strict=True):
        torch.testing.assert_close(parameter.grad, one + two, **NETWORK_FLOAT64)
    a.sum().backward()  # once more through what was retained
    for parameter, one, two in zip(net.parameters(), *expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * one + two, **NETWORK_FLOAT64)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_network_recomputes_the_same(reentrant, rng, generator):
    net = fused_net(rng)
    x = images(generator, (44, 48), dtype=torch.float64).requires_grad_()
    truth = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    net.zero_grad()
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip([x, *net.parameters()], truth, strict=True):
        torch.testing.assert_close(a.grad, b, **NETWORK_FLOAT64)


def test_checkpointing_a_level_that_completes_a_buffer(rng, generator):
    """The level is run again in the backward, and writes the same numbers into the same channels once more."""
    net = fused_net(rng, depth=1)
    x = images(generator, (44, 44), dtype=torch.float64)

    def forward(level) -> Tensor:
        plan = net.fusion(x)
        skip, pooled = net.down[0](x, plan, (32, 32), net.up[0].room(plan, net.down[0]))
        assert isinstance(skip, SkipBuffer)
        return net.head(level(net.bottom(pooled, plan), skip, plan))

    truth = torch.autograd.grad(forward(net.up[0]).square().sum(), list(net.parameters()))
    out = forward(lambda *arguments: checkpoint(net.up[0], *arguments, use_reentrant=False))
    for a, b in zip(torch.autograd.grad(out.square().sum(), list(net.parameters())), truth, strict=True):
        torch.testing.assert_close(a, b, **NETWORK_FLOAT64)


def test_autograd_sees_that_a_buffer_is_written(rng, generator):
    """Somebody who keeps the skip for a backward of his own before it is completed gets torch's error, not garbage."""
    net = fused_net(rng, depth=1)
    x = images(generator, (44, 44), dtype=torch.float64)
    plan = net.fusion(x)
    skip, pooled = net.down[0](x, plan, (32, 32), net.up[0].room(plan, net.down[0]))
    before = skip.buffer._version
    kept = skip.buffer.square()
    net.up[0](net.bottom(pooled, plan), skip, plan)
    assert skip.buffer._version == before + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


@pytest.mark.parametrize("frozen", ["down", "up", "bottom", "head"])
def test_frozen_parts(frozen, rng, generator):
    net = fused_net(rng)
    x = images(generator, (44, 44), dtype=torch.float64)
    truth = dict(
        zip(dict(net.named_parameters()), torch.autograd.grad(net(x).sum(), list(net.parameters())), strict=True)
    )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    net(x).sum().backward()
    for name, parameter in net.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, truth[name], **NETWORK_FLOAT64)


def test_hooked_and_replaced_layers_are_called(rng, generator):
    net = fused_net(rng)
    x = images(generator, (44, 44), dtype=torch.float64)
    expected = net(x)
    calls = []
    layers = [
        net.down[0].block[0],
        net.down[1].pool,
        net.up[0].up,
        net.up[1].concat,
        net.bottom[1],
        net.down[1].block[3],
    ]
    handles = [layer.register_forward_hook(lambda layer, *_: calls.append(layer)) for layer in layers]
    torch.testing.assert_close(net(x), expected, **NETWORK_FLOAT64)
    assert {id(layer) for layer in calls} == {id(layer) for layer in layers}
    for handle in handles:
        handle.remove()

    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    original = net.down[1].block[2]
    net.down[1].block[2] = Doubled(8, 8, 3).double()
    net.down[1].block[2].load_state_dict(original.state_dict())
    fused = net(x)
    net.fused = False
    torch.testing.assert_close(fused, net(x), **NETWORK_FLOAT64)
    assert (fused - expected).abs().max() > 0.01


def test_a_parametrised_convolution(rng, generator):
    net = fused_net(rng)
    nn.utils.parametrizations.weight_norm(net.bottom[2])
    nn.utils.parametrizations.weight_norm(net.up[0].up)
    x = images(generator, (44, 44), dtype=torch.float64)
    fused, fused_grads = run(net, x, True)
    plain, plain_grads = run(net, x, False)
    for a, b in zip([*fused, *fused_grads], [*plain, *plain_grads], strict=True):
        torch.testing.assert_close(a, b, **NETWORK_FLOAT64)


def test_auto_takes_the_table_and_no_reference(monkeypatch):
    net = uf.UNet(**SMALL)
    assert net.fused == "auto"
    x = torch.zeros(1, 1, 44, 44)
    everything = {"cpu": fusion.FULL}
    monkeypatch.setattr(fusion, "AUTO", everything)
    assert net.fusion(x) == fusion.FULL
    with use_backend("reference"):
        assert net.fusion(x) == fusion.PLAIN
    assert net.fusion(x.to("meta")) == fusion.PLAIN
    net.fused = False
    assert net.fusion(x) == fusion.PLAIN
    assert "fused" not in net.config
    assert uf.models.create("unet", fused=True, **SMALL).fused is True
    for wrong in ("yes", 1, None):
        with pytest.raises(InputError, match="expected True, False or 'auto'"):
            uf.UNet(fused=wrong, **SMALL)
        with pytest.raises(InputError, match="expected True, False or 'auto'"):
            net.fused = wrong


@pytest.mark.parametrize("wanted", [False, True])
def test_convolutions_are_fused_where_the_table_says_so(wanted, monkeypatch, generator):
    net = uf.UNet(in_channels=2, **SMALL)
    seen = []

    def spy(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return conv_bias_relu(x, *arguments, **options)

    monkeypatch.setattr("unet_fast.models.layers.conv_bias_relu", spy)
    monkeypatch.setattr(fusion, "AUTO", {"cpu": fusion.Fusion(wanted, False, False, False)})
    x = torch.randn(2, 4, 20, 20, generator=generator)
    net.down[1].block(x, net.fusion(x))
    assert seen == ([(2, 4, 20, 20), (2, 8, 18, 18)] if wanted else [])


def test_with_the_reference_asked_for(rng, generator):
    net = fused_net(rng)
    x = images(generator, (44, 44), dtype=torch.float64)
    fused, fused_grads = run(net, x, True)
    with use_backend("reference"):
        plain, plain_grads = run(net, x, True)
    for a, b in zip([*fused, *fused_grads], [*plain, *plain_grads], strict=True):
        torch.testing.assert_close(a, b, **NETWORK_FLOAT64)


@pytest.mark.parametrize("name", ["unet", "unet-2015-release", "unet++"])
def test_a_state_saved_fused_loads_into_a_plain_network(name, rng, generator):
    net = build(name, SMALL, rng, dtype=torch.float64).eval()
    other = uf.models.create(name, in_channels=2, fused=False, **SMALL).double().eval()
    other.load_state_dict(net.state_dict())
    net.fused = True
    size = (44, 44)
    x = images(generator, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), **NETWORK_FLOAT64)
        torch.testing.assert_close(net(x), net(x), **EXACT)


def test_operations_are_counted_as_in_the_plain_network(generator):
    net = uf.UNet(in_channels=2, base_channels=4, depth=2)
    x = images(generator, (44, 48))
    target = torch.randint(0, 2, (2, 4, 8), generator=generator)
    counts = []
    for fused in (False, True):
        net.fused = fused
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            net(x)
        with FlopCounterMode(display=False) as step:
            net.loss(x, target).backward()
        counts.append((forward.get_total_flops(), step.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
