"""What a forward may ask besides its arguments: an accelerated network follows it, or was left alone, and nothing is left behind."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unet_fast as uf
from unet_fast.accelerate.check import tensors_of
from unet_fast.accelerate.patch import patch_of

pytestmark = pytest.mark.core

FLAGS = {"negative": False}
SIGN = 1
CALLS: list[int] = []


def _sign() -> int:
    return -1 if FLAGS["negative"] else 1


class Block(nn.Module):
    """Convolution, normalisation, activation; what else a forward does is up to the subclasses."""

    sign = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.act = nn.InstanceNorm2d(16, affine=True), nn.ReLU()
        self.more, self.named = nn.ModuleList([nn.Conv2d(16, 16, 1)]), nn.ModuleDict({"a": nn.Conv2d(16, 16, 1)})
        self.options, self.settings = {"sign": 1, "deep": {"sign": 1}}, types.SimpleNamespace(sign=1, inner=FLAGS)
        self.conv.sign = 1
        self.register_buffer("factor", torch.ones(()))
        self.kept: Any = types.SimpleNamespace(map=None, maps=[[]])

    def body(self, x):
        return self.act(self.norm(self.conv(self.first(x))))

    def forward(self, x):
        return self.body(x)

    @property
    def chosen(self):
        return self.options["sign"]


def _forward(text: str) -> type[Block]:
    """A block with this forward."""
    scope: dict[str, Any] = globals()
    name = f"Block{abs(hash(text))}"
    exec(f"class {name}(Block):\n  def forward(self, x):\n    {text}", scope)
    made: type[Block] = scope[name]
    return made


def _made(kind: Callable[[], nn.Module]) -> tuple[Any, Any, Tensor, uf.accelerate.Report]:
    torch.manual_seed(0)
    net = kind().eval()
    plain, image = copy.deepcopy(net), torch.randn(2, 1, 12, 11)
    return net, plain, image, uf.accelerate(net, image)


def _same(net: nn.Module, plain: nn.Module, image: Tensor) -> None:
    got, truth = net(image), plain(image)
    assert type(got) is type(truth)
    for one, other in zip(tensors_of(got), tensors_of(truth), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def _set(holder: Any, name: str, value: Any) -> None:
    holder.__setitem__(name, value) if isinstance(holder, dict) else setattr(holder, name, value)


# the forward, and what is changed later
CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "attribute over that of the class": ("return self.sign * self.body(x)", lambda net: _set(net, "sign", -1)),
    "attribute of the class": ("return self.sign * self.body(x)", lambda net: _set(type(net), "sign", -1)),
    "dict": ("return self.options['sign'] * self.body(x)", lambda net: _set(net.options, "sign", -1)),
    "dict in a dict": ("return self.options['deep']['sign'] * self.body(x)", lambda net: _set(net.options["deep"], "sign", -1)),
    "object": ("return self.settings.sign * self.body(x)", lambda net: _set(net.settings, "sign", -1)),
    "property": ("return self.chosen * self.body(x)", lambda net: _set(net.options, "sign", -1)),
    "getattr": ("return getattr(self, 'sign') * self.body(x)", lambda net: _set(net, "sign", -1)),
    "attribute of a child": ("return self.conv.sign * self.body(x)", lambda net: _set(net.conv, "sign", -1)),
    "mode of a child": ("return self.body(x) * (-1 if self.act.training else 1)", lambda net: net.act.train()),
    "kind of a child": ("return self.body(x) * (1 if isinstance(self.act, nn.ReLU) else -1)",
                        lambda net: _set(net, "act", nn.Identity())),
    "number of a buffer": ("return self.body(x) * (1 if self.factor > 0 else -1)", lambda net: net.factor.fill_(-1)),
    "global": ("return SIGN * self.body(x)", lambda net: _set(globals(), "SIGN", -1)),
    "global dict by a function": ("return _sign() * self.body(x)", lambda net: _set(FLAGS, "negative", True)),
    "longer list": ("x = self.body(x)\n    for one in self.more: x = one(x)\n    return x",
                    lambda net: net.more.append(nn.Conv2d(16, 16, 1).apply(_ones))),
    "shorter list": ("x = self.body(x)\n    for one in self.more: x = one(x)\n    return x",
                     lambda net: _set(net, "more", net.more[:0])),
    "another name": ("x = self.body(x)\n    for one in self.named.values(): x = one(x)\n    return x",
                     lambda net: _set(net.named, "b", nn.Conv2d(16, 16, 1).apply(_ones))),
    "another method": ("return self.act(self.norm(self.conv.forward(self.first(x)))) * self.sign",
                       lambda net: _set(net, "sign", -1)),
}  # fmt: skip


def _ones(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.ones_(parameter)


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_later_is_followed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, change = CHANGES[what]
    monkeypatch.setitem(globals(), "SIGN", SIGN), monkeypatch.setitem(FLAGS, "negative", False)
    net, plain, image, report = _made(_forward(text))
    assert report.replaced and not [one for one in report.left if "differs" in one.why], str(report)
    _same(net, plain, image)
    before = plain(image)
    for one in (net, plain):
        change(one)
    assert not torch.equal(plain(image), before)
    _same(net, plain, image)


# the forward, and the words of the report
LEFT = {
    "with torch.autocast('cpu', enabled=False): return self.body(x.float())": "uses a with block",
    "CALLS.append(1)\n    return self.body(x)": "reads the global CALLS",
    "global SIGN\n    SIGN = SIGN\n    return self.body(x)": "changes the global SIGN",
    "self.kept.map = self.body(x)\n    return self.kept.map": "changes its attribute kept",
    "self.kept.maps[0].append(self.body(x))\n    return self.kept.maps[0][-1]": "its attribute kept",
    "return checkpoint(self.body, x, use_reentrant=False)": "recomputes what gradients need",
    "return self.body(x) if type(x) is Tensor else x": "asks for the type",
    "return self.body(x) * (1 if torch.rand(()) < 2 else 0)": "uses rand",
}


@pytest.mark.parametrize("text", LEFT)
def test_what_steps_cannot_hold_is_left_alone(text: str) -> None:
    net, plain, image, report = _made(_forward(text))
    assert any(one.path == "" and LEFT[text] in one.why for one in report.left), str(report)
    assert patch_of(net) is None and report.replaced  # what is inside is replaced all the same
    assert net.kept.map is None or type(net.kept.map) is Tensor  # nothing of the reading stays behind
    assert all(type(one) is Tensor for one in net.kept.maps[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image).dtype == plain(image).dtype
    _same(net, plain, image)


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x):
        return self.body(x)


class Frozen(Block):
    def forward(self, x):
        with torch.no_grad():
            x = self.first(x)
        return self.act(self.norm(self.conv(x)))


@pytest.mark.parametrize("kind", [Decorated, Frozen])
def test_parts_without_gradients_stay_so(kind: type[Block]) -> None:
    net, plain, image, report = _made(kind)
    assert not [one for one in report.left if "gradient" in one.why], str(report)
    assert net(image).requires_grad == plain(image).requires_grad
    _same(net, plain, image)


class Either(Block):
    """Takes one map, or several that it joins, as torchvision's DenseNet does."""

    def forward(self, x):
        return self.body(x if isinstance(x, Tensor) else torch.cat(x, 1))


def test_an_argument_may_be_something_else_at_another_call() -> None:
    net, plain, image, report = _made(Either)
    assert patch_of(net) is not None
    _same(net, plain, image)
    for one in (net, plain):
        one.first = nn.Conv2d(2, 16, 3, padding=1).apply(_ones)
    _same(net, plain, [image, image])


Pair = collections.namedtuple("Pair", "logits features")


@dataclasses.dataclass
class Output:
    logits: Any
    features: Any


@pytest.mark.parametrize(
    "made", ["Pair(x, [x])", "Output(x, x)", "collections.OrderedDict(a=x, b=x)", "{'a': (x, None)}"]
)
def test_outputs_of_any_kind_stay_what_they_are(made: str) -> None:
    net, plain, image, report = _made(_forward(f"x = self.body(x)\n    return {made}"))
    assert report.replaced and report.scale > 0
    _same(net, plain, image)


class Writing(Block):
    def forward(self, x):
        return self.body(x.mul_(2))


def test_the_example_is_not_written_to() -> None:
    net, plain, image, _ = _made(Writing)
    assert torch.equal(image, (torch.manual_seed(0), Writing(), torch.randn(2, 1, 12, 11))[2])
    got, truth = net(image.clone()), plain(image.clone())
    assert (got - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_single_images_without_a_batch() -> None:
    net, plain, image, _ = _made(lambda: nn.Sequential(Block(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)))
    _same(net, plain, image[0])


def test_called_in_inference_mode() -> None:
    torch.manual_seed(0)
    net, image = Block(), torch.randn(2, 1, 12, 11)
    with torch.inference_mode():
        report = uf.accelerate(net, image + 0)
    assert report.replaced and not [one for one in report.left if "gradient" in one.why], str(report)
    assert net(image).requires_grad


def test_gradients_that_cannot_be_compared() -> None:
    class Reentrant(Block):
        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=True)

    net, plain, image, report = _made(lambda: nn.Sequential(nn.Conv2d(1, 1, 1), Reentrant()))
    assert report.replaced and "gradients were not compared" in str(report)
    _same(net, plain, image)

    spoilt = Block()
    nn.init.constant_(spoilt.first.weight, float("nan"))
    report = uf.accelerate(spoilt, image)
    assert not report.replaced and "is not finite on the example, so nothing can be compared" in str(report)


def test_copies_for_data_parallelism_have_patches_of_their_own() -> None:
    net, plain, image, report = _made(Block)
    copied = (
        net._replicate_for_data_parallel()
    )  # what nn.DataParallel calls, before it fills in the parameters of a device
    assert patch_of(copied).module is copied and patch_of(net).module is net
    copied._parameters, copied._buffers = dict(net._parameters), dict(net._buffers)
    copied._modules = {name: copy.deepcopy(child) for name, child in net._modules.items()}
    for child in copied._modules.values():
        _ones(child)
    assert not torch.equal(copied(image), net(image))
    report.undo()
    assert not [
        name
        for module in net.modules()
        for name in module.__dict__
        if name in ("forward", "_replicate_for_data_parallel")
    ]


def test_parts_that_are_compiled_run_as_they_are_while_they_are_compared() -> None:
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.manual_seed(0)
    net, image = nn.Sequential(Block(), nn.Conv2d(16, 2, 1)).eval(), torch.randn(2, 1, 12, 11)
    plain = copy.deepcopy(net)
    net[0].compile(backend=backend)
    net[1] = torch.compile(net[1], backend=backend)
    net(image), operators.clear()
    report = uf.accelerate(net, image)
    assert report.replaced and not operators
    _same(net, plain, image)
    assert any("unet_fast" in name for name in operators)


def test_refusals_of_what_is_no_network_yet_or_no_more() -> None:
    with pytest.raises(uf.InputError, match="layers without sizes .lazy ones.; call it once on an image first"):
        uf.accelerate(nn.Sequential(nn.LazyConv2d(16, 3)), torch.randn(1, 1, 9, 9))
    program = torch.export.export(nn.Sequential(nn.Conv2d(1, 16, 3)), (torch.randn(1, 1, 9, 9),))
    with pytest.raises(uf.errors.InputTypeError, match="expected a network as it is before torch.export"):
        uf.accelerate(program.module())


def test_second_derivatives_say_what_to_do() -> None:
    net, plain, image, report = _made(Block)

    def slope_of_slope(one: nn.Module) -> Tensor:
        x = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    truth = slope_of_slope(plain)
    with pytest.raises(uf.InputError, match="behind uf.accelerate, report.undo.. brings torch's own layers back"):
        slope_of_slope(net)
    report.undo()
    assert torch.allclose(slope_of_slope(net), truth)
