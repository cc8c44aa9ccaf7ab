"""uf.accelerate: what it leaves alone, what survives it, and its report."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import pytest
import torch
from torch import nn

import unet_fast as uf
from tests.peers import Milesial
from unet_fast.accelerate.patch import patch_of
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core


@pytest.fixture
def image(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 1, 32, 32, generator=generator)


@pytest.fixture
def net() -> Milesial:
    torch.manual_seed(0)
    return Milesial(depth=2).eval()


def _close(got: torch.Tensor, truth: torch.Tensor) -> bool:
    return bool((got - truth).abs().max() <= 1e-4 * truth.abs().max())


def _patched(model: nn.Module) -> int:
    return sum(patch_of(module) is not None for module in model.modules())


def test_report_says_what_was_done(net: Milesial, image: torch.Tensor) -> None:
    report = uf.accelerate(net, image)
    text = str(report)
    assert "inc: 3x3 convolution + BatchNorm2d + ReLU (x2)" in text
    assert "outc (Conv2d: 1x1 convolution" in text
    assert "(2, 1, 32, 32) float32 on cpu" in text and "ms before" in text
    assert report.before > 0 and report.after > 0
    assert 0 <= report.largest_difference <= 1e-4 * report.scale


def test_first_layers_run_by_the_same_operator(image: torch.Tensor) -> None:
    """Of one to four channels, in a row or alone; the report does not say that torch's own runs."""
    report = uf.accelerate(Milesial(), image)
    assert not [one for one in report.left if one.kind == "Conv2d" and one.why.startswith("3x3")], str(report)
    alone = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1))
    report = uf.accelerate(alone, torch.randn(1, 3, 20, 20))
    assert [one.path for one in report.replaced] == ["0"] and not report.left
    few = uf.accelerate(torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3)), torch.randn(1, 8, 20, 20))
    assert not few.replaced and "8 to 16 channels, stride 1, 1 groups: torch's own runs" in str(few)


def test_without_an_example_one_is_made(net: Milesial, image: torch.Tensor) -> None:
    truth = net(image)
    report = uf.accelerate(net)
    assert report.replaced and "(2, 1, 64, 64)" in report.example
    assert _close(net(image), truth)


def test_a_network_that_takes_no_image_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3)

        def forward(self, a, b):
            return self.conv(a + b)

    model = Two()
    report = uf.accelerate(model)
    assert not report.replaced and "give one as example=" in str(report)
    assert _patched(model) == 0
    pair = (torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8))
    assert uf.accelerate(model, pair).replaced


def test_second_call_does_nothing_twice(net: Milesial, image: torch.Tensor) -> None:
    first = uf.accelerate(net, image)
    patches = [patch_of(module) for module in net.modules()]
    second = uf.accelerate(net, image)
    assert all(a is b for a, b in zip(patches, (patch_of(module) for module in net.modules()), strict=True))
    assert [one.path for one in first.replaced] == [one.path for one in second.replaced]
    second.undo()
    assert _patched(net) == 0
    first.undo()  # nothing is left to be undone


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "AveragedModel"])
def test_copies_are_fast_and_on_their_own(way: str, net: Milesial, image: torch.Tensor) -> None:
    uf.accelerate(net, image)
    if way == "deepcopy":
        other = copy.deepcopy(net)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(net))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = torch.optim.swa_utils.AveragedModel(net).module
    assert _patched(other) == _patched(net)
    before = net(image)
    assert torch.equal(other(image), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert torch.equal(net(image), before) and not torch.equal(other(image), before)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_every_module_are_called(kind: str, net: Milesial, image: torch.Tensor) -> None:
    plain, seen = copy.deepcopy(net), {}
    uf.accelerate(net, image)
    for name, model in (("plain", plain), ("fast", net)):
        seen[name] = []
        for path, module in model.named_modules():
            if kind == "full_backward" and isinstance(module, nn.ReLU | nn.BatchNorm2d):
                continue  # torch itself refuses these around an activation in place
            register = getattr(module, f"register_{kind}_hook")
            register(lambda *args, path=path, name=name: seen[name].append(path))
    with torch.set_grad_enabled(kind == "full_backward"):
        out = [model(image.clone().requires_grad_(kind == "full_backward")) for model in (plain, net)]
    if kind == "full_backward":
        [one.sum().backward() for one in out]
    assert seen["fast"] == seen["plain"] and seen["plain"]
    assert _close(out[1], out[0])


def test_layers_exchanged_later_are_called(net: Milesial, image: torch.Tensor) -> None:
    # low-rank adapters and quantisation put layers of their own in the place of others
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    uf.accelerate(net, image)
    plain = Milesial(depth=2).eval()
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        block = model.inc.double_conv
        old = block[3]
        block[3] = Doubled(old.in_channels, old.out_channels, 3, padding=1, bias=False)
        block[3].weight = old.weight
        model.up[0].conv.double_conv[1] = nn.Identity()
    with torch.no_grad():
        assert _close(net(image), plain(image))


def test_weights_changed_in_any_way_are_used(net: Milesial, image: torch.Tensor) -> None:
    uf.accelerate(net, image)
    with torch.no_grad():
        net(image)
        net.inc.double_conv[0].weight.data.mul_(-1)
        net.inc.double_conv[4].running_mean.add_(0.5)
        fast = net(image)
        state = {key: value.clone() for key, value in net.state_dict().items()}
        plain = Milesial(depth=2).eval()
        plain.load_state_dict(state)
        assert _close(fast, plain(image))
        net.load_state_dict(Milesial(depth=2).state_dict())
        assert not _close(net(image), fast)


def test_somebody_elses_forward_is_left_alone(image: torch.Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    conv = model[1]
    conv.forward = lambda x: 3 * nn.Conv2d.forward(conv, x)
    truth = model(image)
    report = uf.accelerate(model, image)
    assert any(one.path == "1" and "already replaced by other code" in one.why for one in report.left)
    assert _close(model(image), truth)
    report.undo()
    assert "forward" in conv.__dict__


def test_a_forward_that_changes_from_call_to_call_is_left_alone(image: torch.Tensor) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return x if torch.rand(()) < 0.5 else -x

    class Counting(Random):
        count = 0

        def forward(self, x):
            self.count = self.count + 1
            return self.norm(self.conv(x))

    for kind, why in ((Random, "rand"), (Counting, "count")):
        model = nn.Sequential(kind()).eval()
        report = uf.accelerate(model, image)
        assert any(one.path == "0" and why in one.why for one in report.left), str(report)
        assert patch_of(model[0]) is None


def test_a_wrong_replacement_is_taken_back(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_fast.accelerate import layers

    right = layers.conv3x3
    monkeypatch.setattr(layers, "conv3x3", lambda *args, **options: 1.01 * right(*args, **options))
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.ReLU())
    truth = model(image)
    with uf.ops.use_convolution("winograd"):  # by the table layers as small as these are torch's
        report = uf.accelerate(model, image)
    assert torch.equal(model(image), truth)
    assert not report.replaced and any("differs" in one.why for one in report.left)


def test_wrong_gradients_take_everything_back(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_fast.accelerate import layers

    right = layers.conv3x3
    monkeypatch.setattr(layers, "conv3x3", lambda x, weight, *args, **kw: right(x, weight.detach(), *args, **kw))
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.ReLU())
    with uf.ops.use_convolution("winograd"):
        report = uf.accelerate(model, image)
    assert not report.replaced and _patched(model) == 0
    # of the first layer too: within a row it runs by the same function, on the processors where that takes single channels
    assert any(
        "the gradient of 0.weight is missing" in one.why or "the gradient of 1.weight is missing" in one.why
        for one in report.left
    )


def test_inference(net: Milesial, image: torch.Tensor) -> None:
    net.train()
    net.inc.eval()  # a part that somebody froze
    modes = [module.training for module in net.modules()]
    truth = copy.deepcopy(net).eval()(image)
    strides = [parameter.stride() for parameter in net.parameters()]
    report = uf.accelerate(net, image, inference=True)
    assert not net.training and not net(image).requires_grad
    assert _close(net(image), truth) and _close(net(image.to(memory_format=torch.channels_last)), truth)
    assert "faster here" in str(report)
    assert _close(pickle.loads(pickle.dumps(net))(image), truth)
    uf.accelerate(net, image, inference=True).undo()
    assert [module.training for module in net.modules()] == modes
    assert [parameter.stride() for parameter in net.parameters()] == strides and _patched(net) == 0


def test_training_keeps_statistics_and_modes(net: Milesial, image: torch.Tensor) -> None:
    plain = copy.deepcopy(net)
    uf.accelerate(net, image)
    for model in (net, plain):
        model.train()(image)
    for (name, got), truth in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(got, truth, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_autocast(dtype: torch.dtype, net: Milesial, image: torch.Tensor) -> None:
    plain = copy.deepcopy(net)
    uf.accelerate(net, image)
    with torch.no_grad():
        truth = plain.to(dtype)(image.to(dtype))
        got = net.to(dtype)(image.to(dtype))
    assert got.dtype == dtype
    scale = truth.abs().max()
    assert (got - truth).abs().max() <= (0.05 if dtype == torch.bfloat16 else 1e-10) * scale
    if dtype == torch.bfloat16:
        net.float(), plain.float()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            got, truth = net(image), plain(image)
        assert got.dtype == truth.dtype and (got - truth).abs().max() <= 0.05 * truth.abs().max()


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_before_and_after(grad: bool, image: torch.Tensor) -> None:
    net = Milesial(depth=1).eval()
    truth = net(image).detach()
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(net, backend=backend)
    with torch.set_grad_enabled(grad):
        assert torch.equal(compiled(image), truth)
        assert not any("unet_fast" in name for name in operators)
        uf.accelerate(compiled, image)
        assert _close(compiled(image), truth)
        assert any("unet_fast" in name for name in operators)
        torch._dynamo.reset()
        assert _close(torch.compile(net, backend=backend, fullgraph=True)(image), truth)


def test_transforms_see_torchs_own_operations(net: Milesial, image: torch.Tensor) -> None:
    truth = net(image).detach()
    uf.accelerate(net, image)
    program = torch.export.export(net, (image,))
    assert not any("unet_fast" in str(node.target) for node in program.graph.nodes)
    assert _close(program.module()(image), truth)
    assert _close(torch.jit.trace(net, (image,))(image), truth)
    assert _close(torch.fx.symbolic_trace(net)(image), truth)
    assert _close(torch.vmap(net)(image[None])[0], truth)
    plain = Milesial(depth=2).eval()
    plain.load_state_dict(net.state_dict())
    tangents = [torch.func.jvp(one, (image,), (torch.ones_like(image),))[1] for one in (net, plain)]
    assert _close(*tangents) and tangents[1].abs().max() > 0


def test_an_example_that_only_evaluation_takes(generator: torch.Generator) -> None:
    net = Milesial(depth=2)
    plain = copy.deepcopy(net)
    one = torch.randn(1, 1, 4, 4, generator=generator)  # 1 x 1 at the bottom: a batch norm in training wants more
    with pytest.raises(ValueError, match="more than 1 value"):
        copy.deepcopy(net)(one)
    report = uf.accelerate(net, one)
    assert report.replaced and "not compared in training, where the network does not take the example" in str(report)
    assert _close(net.eval()(one), plain.eval()(one))


def test_gradients_that_rounding_decides(image: torch.Tensor) -> None:
    # a batch norm of two numbers makes -1 and 1 of them, whatever they are; its gradient is what rounding left
    torch.manual_seed(0)
    net = Milesial(depth=2)
    report = uf.accelerate(net, image[:, :, :4, :4])
    assert report.replaced and not [one for one in report.left if "differs" in one.why], str(report)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_networks_held_in_bfloat16(norm: str, image: torch.Tensor) -> None:
    """Rounding, of which most of a bias's gradient before a norm is made, takes nothing back: errors are those of torch's own."""
    torch.manual_seed(0)
    net = Milesial(depth=2).to(torch.bfloat16)
    for block in list(net.modules()):
        for name, child in block.named_children():
            if norm == "instance" and isinstance(child, nn.BatchNorm2d):
                setattr(block, name, nn.InstanceNorm2d(child.num_features, affine=True).to(torch.bfloat16))
    plain, wide, image = copy.deepcopy(net), copy.deepcopy(net).double(), image.to(torch.bfloat16)
    report = uf.accelerate(net, image)
    assert report.replaced and not [one for one in report.left if "differs" in one.why], str(report)
    factors = torch.randn(plain(image).shape)

    def gradients(model: nn.Module) -> torch.Tensor:
        out = model.train()(image.to(next(model.parameters()).dtype))
        found = torch.autograd.grad((out.double() * factors).sum(), list(model.parameters()))
        return torch.cat([gradient.double().flatten() for gradient in found])

    truth = gradients(wide)
    ours, theirs = ((gradients(model) - truth).norm() for model in (net, plain))
    assert 0 < ours <= 1.5 * theirs < 0.5 * truth.norm()


def test_wrong_gradients_are_seen_in_bfloat16(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_fast.accelerate import layers

    right = layers.normalised
    monkeypatch.setattr(layers, "normalised", lambda norm, x, *rest: right(norm, x.lerp(x.detach(), 0.5), *rest))
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 4, 1))
    model, image = model.to(torch.bfloat16), image.to(torch.bfloat16)
    report = uf.accelerate(model, image)
    assert not report.replaced and any("the gradient of 0.weight differs by 0.5" in one.why for one in report.left)


def test_what_is_not_replaced_takes_no_other_time(image: torch.Tensor) -> None:
    report = uf.accelerate(nn.Sequential(nn.Conv2d(1, 4, 1)), image)
    assert not report.replaced and report.after == report.before > 0


def test_refusals(net: Milesial) -> None:
    with pytest.raises(InputTypeError, match="model is str, expected a torch.nn.Module"):
        uf.accelerate("net")
    with pytest.raises(InputError, match=r"the network does not take the example, \(1, 3, 32, 32\) float32 on cpu: "):
        uf.accelerate(net, torch.randn(1, 3, 32, 32))
    assert _patched(net) == 0


def test_the_package_and_the_function_are_one_name(net: Milesial, image: torch.Tensor) -> None:
    from unet_fast.accelerate import Report

    # what `import unet_fast.accelerate` binds before anybody asked for the function
    assert isinstance(sys.modules["unet_fast.accelerate"](net, image), Report)
    assert isinstance(uf.accelerate(net, image), Report)
