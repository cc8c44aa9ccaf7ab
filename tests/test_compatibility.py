"""What works with what: every operator, the networks and accelerated networks under what other people's code does.

``python -m tests.test_compatibility`` writes the table of docs/compatibility.md from :data:`TABLE`; each cell is a test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unet_fast as uf
from tests.peers import Milesial
from unet_fast.ops import _record

OWN, PLAIN = "yes", "by torch's operations"
SUBJECTS = ("operators", "networks", "accelerated networks")
# what the first column says -> what becomes of the three subjects
TABLE = {
    "`torch.compile(fullgraph=True)`": (OWN, OWN, OWN),
    "`torch.export`, functional, so fit for quantisers": (OWN, OWN, PLAIN),
    "`torch.jit.trace`": (PLAIN, PLAIN, PLAIN),
    "`torch.fx.symbolic_trace`": (OWN, OWN, PLAIN),
    "`torch.func.vmap`": (PLAIN, PLAIN, PLAIN),
    "`torch.func.grad`": (PLAIN, PLAIN, PLAIN),
    "`torch.func.jvp`, forward-mode derivatives": (PLAIN, PLAIN, PLAIN),
    "subclasses of `torch.Tensor` (MONAI's MetaTensor), with gradients": (OWN, OWN, OWN),
    "meta tensors": (OWN, PLAIN, PLAIN),
    "another default dtype (Lightning's bf16-true)": (OWN, OWN, OWN),
    "full backward hooks on every module": (None, OWN, OWN),
    "FSDP2, each block for itself": (None, OWN, OWN),
    "DistributedDataParallel": (None, OWN, OWN),
}
PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
# instance maps: how many cells there are decides what is computed, and there is no gradient
OF_LABELS = ("nearest_two", "weight_map", "distance_transform")


# what is computed depends on the values of labels, which vmap does not know
BY_VALUE = ("nearest_two", "weight_map", "weighted_cross_entropy", "head_cross_entropy", "dice_cross_entropy")


class Kind(torch.Tensor):
    """A subclass without anything of its own."""


@dataclass
class Subject:
    """A function of tensors, and which of them get gradients."""

    name: str
    call: Callable[..., Any]
    tensors: tuple[Tensor, ...]
    leaves: tuple[int, ...]
    truth: Callable[..., Any]

    def outputs(self, *tensors: Tensor) -> list[Tensor]:
        return _record.as_list(self.call(*tensors))


def operator_subjects(generator: torch.Generator) -> list[Subject]:
    draw = _record.Draw(generator)
    found = []
    for name, op in _record.OPS.items():
        if name == "up_conv_into":  # writes in place: up_conv_crop_concat is its functional form
            continue
        tensors = op.sample(draw, 2, 8, 9)
        found.append(Subject(name, op.call, tensors, op.leaves, op.truth))
    return found


def network_subject(kind: str, generator: torch.Generator) -> Subject:
    torch.manual_seed(0)
    image = torch.randn(2, 1, 32, 32, generator=generator)
    if kind == "networks":
        net = uf.UNet(base_channels=16, depth=1, padding="same")
        plain = uf.UNet(base_channels=16, depth=1, padding="same", fused=False)
    else:
        net, plain = Milesial(depth=1).eval(), Milesial(depth=1).eval()
        plain.load_state_dict(net.state_dict())
        assert uf.accelerate(net, image).replaced
    plain.load_state_dict(net.state_dict())
    return Subject(kind, net, (image,), (0,), plain)


@pytest.fixture(params=SUBJECTS)
def subjects(request: pytest.FixtureRequest, generator: torch.Generator) -> list[Subject]:
    if request.param == "operators":
        return operator_subjects(generator)
    return [network_subject(request.param, generator)]


def expected(row: str, subject: Subject) -> str | None:
    """What the table says, whose keys begin with ``row``."""
    (cells,) = (cells for name, cells in TABLE.items() if row in name)
    return cells[SUBJECTS.index(subject.name) if subject.name in SUBJECTS else 0]


def close(got: Any, truth: Any) -> None:
    for a, b in zip(_record.as_list(got), _record.as_list(truth), strict=True):
        scale = max(b.abs().max().item(), 1e-6) if b.dtype.is_floating_point else 0
        assert (a.double() - b.double()).abs().max() <= 1e-4 * scale, (a, b)


class Module(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def names(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) + getattr(node.target, "__module__", "") for node in graph.nodes]


def seen(words: list[str]) -> str:
    return OWN if any("unet_fast" in word for word in words) else PLAIN


def test_compile(subjects: list[Subject]) -> None:
    for subject in subjects:
        words: list[str] = []

        def backend(graph: torch.fx.GraphModule, _: object, words: list[str] = words) -> torch.fx.GraphModule:
            words.extend(names(graph.graph))
            return graph

        torch._dynamo.reset()
        got = torch.compile(subject.call, backend=backend, fullgraph=True)(*subject.tensors)
        assert seen(words) == expected("torch.compile", subject), subject.name
        close(got, subject.call(*subject.tensors))


def test_export_is_functional(subjects: list[Subject]) -> None:
    for subject in subjects:
        module = subject.call if isinstance(subject.call, nn.Module) else Module(subject.call)
        program = torch.export.export(module, subject.tensors)
        called = [node.target for node in program.graph.nodes if node.op == "call_function"]
        changing = [op for op in called if isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable]
        assert not [op for op in changing if "unet_fast" in str(op)], subject.name
        assert seen([str(op) for op in called]) == expected("torch.export", subject), subject.name
        close(program.module()(*subject.tensors), subject.call(*subject.tensors))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_trace(subjects: list[Subject]) -> None:
    for subject in subjects:
        if subject.name in OF_LABELS:
            continue
        traced = torch.jit.trace(subject.call, subject.tensors, check_trace=False)
        assert seen([node.kind() for node in traced.inlined_graph.nodes()]) == expected("jit.trace", subject), (
            subject.name
        )
        close(traced(*subject.tensors), subject.call(*subject.tensors))


def test_fx(subjects: list[Subject]) -> None:
    for subject in subjects:
        module = subject.call
        if not isinstance(module, nn.Module):
            count, call = len(subject.tensors), subject.call
            names_ = ", ".join(f"t{i}" for i in range(count))
            scope: dict[str, Any] = {"nn": nn, "call": call}
            exec(f"class M(nn.Module):\n  def forward(self, {names_}): return call({names_})", scope)
            module = scope["M"]()
            if subject.name in ("relu_pool_skip", "conv_bias_relu", "elastic_warp", "head_cross_entropy"):
                continue  # the samples' arguments ask for sizes
        graph = torch.fx.symbolic_trace(module)
        if subject.name not in SUBJECTS:
            assert any(getattr(node.target, "__name__", "") == subject.name for node in graph.graph.nodes)
        close(graph(*subject.tensors), subject.call(*subject.tensors))


def test_vmap(subjects: list[Subject]) -> None:
    for subject in subjects:
        twice = [torch.stack([t, t]) for t in subject.tensors]
        if subject.name in BY_VALUE:
            with pytest.raises(RuntimeError, match="vmap"):
                torch.vmap(subject.call)(*twice)
            continue
        got = torch.vmap(subject.call)(*twice)
        for a, b in zip(_record.as_list(got), subject.outputs(*subject.tensors), strict=True):
            close(a[1], b)


def _of_leaves(subject: Subject, call: Callable[..., Any]) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The sum of the squared outputs as a function of the leaves alone."""
    leaves = tuple(subject.tensors[index] for index in subject.leaves)

    def function(*values: Tensor) -> Tensor:
        tensors = list(subject.tensors)
        for index, value in zip(subject.leaves, values, strict=True):
            tensors[index] = value
        return sum(out.square().sum() for out in _record.as_list(call(*tensors)))

    return function, leaves


def test_func_grad_and_jvp(subjects: list[Subject]) -> None:
    for subject in subjects:
        if not subject.leaves:
            continue
        ours, leaves = _of_leaves(subject, subject.call)
        truth, _ = _of_leaves(subject, subject.truth)
        ways = tuple(range(len(leaves)))
        tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
        got, want = torch.func.grad(ours, ways)(*leaves), torch.func.grad(truth, ways)(*leaves)
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-5, subject.name
        got, want = torch.func.jvp(ours, leaves, tangents)[1], torch.func.jvp(truth, leaves, tangents)[1]
        assert want.abs() > 0 and (got - want).abs() <= 1e-3 * want.abs() + 1e-4, subject.name
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(a, b) for a, b in zip(leaves, tangents, strict=True)]
            level = torch.autograd.forward_ad.unpack_dual(ours(*duals)).tangent
        assert level is not None and (level - want).abs() <= 1e-3 * want.abs() + 1e-4, subject.name


def test_subclasses_with_gradients(subjects: list[Subject]) -> None:
    for subject in subjects:
        plain = [t.clone() for t in subject.tensors]
        kinds = [t.clone().as_subclass(Kind) for t in subject.tensors]
        for tensors in (plain, kinds):
            for index in subject.leaves:
                tensors[index].requires_grad_()
        got, truth = subject.outputs(*kinds), subject.outputs(*plain)
        assert all(type(out) is Kind for out in got), subject.name
        close(got, truth)
        if subject.leaves:
            sum(out.square().sum() for out in got).backward()
            sum(out.square().sum() for out in truth).backward()
            close([kinds[i].grad for i in subject.leaves], [plain[i].grad for i in subject.leaves])


def test_meta(subjects: list[Subject]) -> None:
    for subject in subjects:
        call = subject.call
        if isinstance(call, nn.Module):
            call = copy.deepcopy(call).to("meta")
        truth = subject.outputs(*subject.tensors)
        got = _record.as_list(call(*(t.to("meta") for t in subject.tensors)))
        assert [(o.shape, o.dtype) for o in got] == [(o.shape, o.dtype) for o in truth], subject.name
    if subjects[0].name == "networks":
        net = copy.deepcopy(subjects[0].call).to("meta")
        net.loss(torch.empty(1, 1, 32, 32, device="meta"), torch.empty(1, 32, 32, dtype=torch.long, device="meta"))


def test_default_dtype(subjects: list[Subject]) -> None:
    for subject in subjects:
        truth = subject.outputs(*subject.tensors)
        torch.set_default_dtype(torch.bfloat16)
        try:
            got = subject.outputs(*subject.tensors)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, truth, strict=True)), subject.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_augmentation_under_another_default_dtype(dtype: torch.dtype) -> None:
    augment = uf.augment.Augmenter(32, 28, affine=3.0)
    image, labels = torch.rand(1, 1, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
    truth = augment(image, labels, generator=torch.Generator().manual_seed(0))
    torch.set_default_dtype(dtype)
    try:
        got = augment(image, labels, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


@pytest.fixture(params=SUBJECTS[1:])
def network(request: pytest.FixtureRequest, generator: torch.Generator) -> Subject:
    return network_subject(request.param, generator)


def _step(net: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    out = net(image)
    out.square().mean().backward()
    grads = [p.grad for p in net.parameters()]
    return out.detach(), [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


@pytest.mark.parametrize("norm", [None, "batch"])
def test_backward_hooks_on_every_module(norm: str | None, generator: torch.Generator) -> None:
    net = uf.UNet(base_channels=16, depth=1, padding="same", norm=norm)
    image = torch.randn(1, 1, 32, 32, generator=generator)
    truth, called = _step(copy.deepcopy(net), image), []
    for path, module in net.named_modules():
        module.register_full_backward_hook(lambda *_, path=path: called.append(path))
    got = _step(net, image.requires_grad_())
    skipped = {path for path, module in net.named_modules() if isinstance(module, nn.ModuleList | nn.Dropout)}
    assert set(called) | skipped >= {path for path, _ in net.named_modules()} - {"down.0.dropout", "up.0.concat"}
    close(got[0], truth[0])
    close(got[1], truth[1])


@pytest.mark.parametrize("way", ["FSDP2", "DistributedDataParallel"])
def test_distributed(way: str, network: Subject) -> None:
    (image,) = network.tensors
    truth = _step(copy.deepcopy(network.call), image)
    net = copy.deepcopy(network.call)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        if way == "FSDP2":
            mesh = torch.distributed.init_device_mesh("cpu", (1,))
            blocks = [m for m in net.modules() if type(m).__name__ in ("Down", "Up", "ConvBlock", "DoubleConv")]
            for block in blocks[::-1]:
                torch.distributed.fsdp.fully_shard(block, mesh=mesh)
            torch.distributed.fsdp.fully_shard(net, mesh=mesh)
            got = _step(net, image)
        else:
            got = _step(nn.parallel.DistributedDataParallel(net), image)
    finally:
        torch.distributed.destroy_process_group()
    close(got[0], truth[0])
    close(got[1], truth[1])


@pytest.mark.parametrize("kind", [torch.Tensor, Kind])
def test_labels_outside_the_classes_are_seen_whatever_their_kind(kind: type[Tensor]) -> None:
    target = torch.full((1, 4, 4), 7).as_subclass(kind)
    with pytest.raises(uf.InputError, match="target contains 7"):
        uf.nn.DiceLoss()(torch.randn(1, 2, 4, 4), target)


def test_a_view_is_not_written_into_while_gradients_are_recorded(generator: torch.Generator) -> None:
    x, weight = (
        torch.randn(1, 4, 4, 4, generator=generator),
        torch.randn(4, 3, 2, 2, generator=generator).requires_grad_(),
    )
    whole = torch.zeros(2, 5, 8, 8)
    with pytest.raises(uf.InputError, match="buffer is a view of another tensor.*use up_conv_crop_concat"):
        uf.ops.up_conv_into(x, weight, None, whole[:1])
    with torch.no_grad():
        assert uf.ops.up_conv_into(x, weight, None, whole[:1])[:, 2:].abs().min() > 0


def table() -> str:
    """The table as Markdown."""
    lines = [" | ".join(("", *SUBJECTS)), " | ".join(["---"] * 4)]
    lines += [" | ".join((name, *(cell or "-" for cell in cells))) for name, cells in TABLE.items()]
    return "\n".join(f"| {line} |" for line in lines)


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run: python -m tests.test_compatibility"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
