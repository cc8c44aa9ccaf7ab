"""Every public operator as torch's machinery meets it: the same questions to each record.

Registration (opcheck), numeric derivatives, second derivatives or a clear error, compilation without graph breaks or
specialised sizes, export with dynamic sizes, autocast. CUDA graphs and streams: tests/test_cuda_graphs.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests import places
from tests.tolerances import BY_DTYPE, EXACT
from unet_fast import nn, ops
from unet_fast.errors import InputError
from unet_fast.ops import _convolution, use_backend, use_convolution
from unet_fast.ops._record import OPS, Draw, as_list

DIFFERENTIABLE = [name for name, op in OPS.items() if op.leaves]
FORMS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}
each_op = pytest.mark.parametrize("name", OPS)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def form_of(name: str) -> str:
    """conv3x3 has an operator for Winograd's form only; the samples here are too small for "auto" to choose it."""
    return "winograd" if name == "conv3x3" else "auto"


@pytest.fixture(autouse=True)
def by_name(request: pytest.FixtureRequest) -> Iterator[None]:
    """Our operators, and not torch's own, for maps of every size."""
    asked = getattr(request.node, "callspec", None)
    with use_backend(places.wish("cpu")), use_convolution(form_of(asked.params.get("name") if asked else "")):
        yield


def test_every_public_operator_has_a_record():
    choices = {"use_backend", "use_convolution"}
    without_a_kernel = {"fill_buffer"}  # torch's own copy, under an autograd function
    assert set(OPS) == set(ops.__all__) - choices - without_a_kernel


def test_what_has_no_record_runs_no_operator():
    buffer, up = torch.zeros(1, 4, 6, 6).requires_grad_(), torch.ones(1, 2, 6, 6)
    with Operators() as seen:
        ops.fill_buffer(buffer * 1, up).sum().backward()
    assert not seen.calls


@pytest.fixture(autouse=True)
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Operators(TorchDispatchMode):
    """The calls of our operators, those of the backward pass among them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if function.namespace == "unet_fast":
            given = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), args)
            self.calls.setdefault(function.overloadpacket.__name__, (function, given))
        return function(*args, **(kwargs or {}))


def calls_of(name: str, draw: Draw) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    op = OPS[name]
    _convolution.level()  # calls an operator, once in a process
    with Operators() as operators, use_convolution(form_of(name)):
        op.results(op.with_leaves(op.sample(draw, 2, 6, 7)))
    return operators.calls


@each_form
@each_op
def test_every_operator_behind_it_is_registered_right(name, form, generator):
    """Forward and backward, as the op itself calls them."""
    draw = Draw(generator, torch.float32 if form == torch.contiguous_format else torch.bfloat16, form)
    for operator, arguments in calls_of(name, draw).values():
        torch.library.opcheck(operator, arguments)


def test_no_operator_is_left_out(generator):
    seen = {operator for name in OPS for operator in calls_of(name, Draw(generator))}
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("unet_fast::")}
    # what conv_bias_relu calls from C++ and from Triton, what is for GPUs only, what conv3x3 calls without gradients, what the
    # Dice loss calls for a value of each class, and what networks call in front of conv3x3; opchecked in
    # tests/test_bias_relu.py, tests/test_gradient_scaling.py, tests/test_conv3x3.py, tests/test_dice_cross_entropy.py and
    # tests/test_up_conv.py
    others = {
        "region_sums",
        "bias_relu_",
        "weighted_cross_entropy_backward_",
        "conv3x3_weights",
        "conv3x3_pool",
        "fingerprint",
        "up_conv",
    }
    assert seen | others == {name.split("::")[1].split(".")[0] for name in registered}


@each_form
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_numeric_derivatives(name, form, generator):
    op = OPS[name]
    tensors = op.with_leaves(op.sample(Draw(generator, torch.float64, form), 1, 4, 5))

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = list(tensors)
        for index, leaf in zip(op.leaves, leaves, strict=True):
            given[index] = leaf
        return tuple(output for output in as_list(op.call(*given)) if output.is_floating_point())

    leaves = [tensors[index] for index in op.leaves]
    # of thousands of numbers the derivative in a random direction, not in each of them
    check = {"fast_mode": sum(leaf.numel() for leaf in leaves) > 1000}
    assert torch.autograd.gradcheck(function, leaves, **check)
    if op.second:
        assert torch.autograd.gradgradcheck(function, leaves, **check)
        return
    with pytest.raises(
        InputError, match=rf"^{name} has no second .*use unet_fast.reference.{name} where one is needed"
    ):
        torch.autograd.grad(sum(output.square().sum() for output in function(*leaves)), leaves, create_graph=True)
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(function, leaves, **check)


@pytest.mark.parametrize("name", sorted(set(OPS) - set(DIFFERENTIABLE)))
def test_without_derivatives_nothing_is_recorded(name, generator):
    for output in as_list(OPS[name].call(*OPS[name].sample(Draw(generator), 1, 4, 5))):
        assert not output.requires_grad and output.grad_fn is None


@each_form
@each_op
def test_compiled_once_for_all_sizes(name, form, generator):
    """One graph without breaks serves other batches and sizes, forward and backward: no size is specialised."""
    op = OPS[name]
    compiled = torch.compile(op.call, fullgraph=True, dynamic=True, backend="aot_eager")
    # sizes that are equal by chance in the first call are not taken to be equal in the next ones
    patch = torch.fx.experimental._config.patch(use_duck_shape=False)
    with torch._dynamo.config.patch(error_on_recompile=True), patch:
        for size in ((2, 9, 12), (3, 14, 11), (5, 6, 7)):
            drawn = op.sample(Draw(generator, form=form), *size)
            results = (op.results(op.with_leaves(drawn), call) for call in (op.call, compiled))
            torch.testing.assert_close(*results, **BY_DTYPE[torch.float32])


class Module(torch.nn.Module):
    """torch.export takes modules."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(*tensors)


def dynamic_sizes(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """The dimensions in which two draws differ; a graph that fixes one of them is refused."""
    return tuple(
        {d: torch.export.Dim.DYNAMIC for d in range(a.dim()) if a.shape[d] != b.shape[d]}
        for a, b in zip(first, second, strict=True)
    )


@each_op
def test_exported_with_dynamic_sizes(name, generator):
    op = OPS[name]
    first, second = (op.sample(Draw(generator), *size) for size in ((2, 9, 12), (3, 14, 11)))
    program = torch.export.export(Module(op.call), first, dynamic_shapes=(dynamic_sizes(first, second),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith(f"unet_fast.{name}.") for target in targets), targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for tensors in (first, second):
        torch.testing.assert_close(loaded(*tensors), op.call(*tensors), **BY_DTYPE[torch.float32])


class Layers(torch.nn.Module):
    """Every layer of the package, in one network with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.warp = nn.ElasticWarp(interpolation=("bilinear", "nearest"))
        self.convolution = nn.ConvReLU(2, 4, 3)
        self.pool = torch.nn.MaxPool2d(2)
        self.up = nn.UpConvCropConcat(4, 3)
        self.join = nn.CropConcat()
        self.head = torch.nn.Conv2d(9, 2, 1)
        self.weigh = nn.DistanceWeightMap(class_weights="balanced")
        self.loss = nn.WeightedCrossEntropyLoss()

    def forward(self, images: Tensor, instances: Tensor) -> Tensor:
        images, warped = self.warp((images, instances[:, None]))
        y = self.convolution(images)
        logits = self.head(self.join(images, self.up(self.pool(y), y)))
        size = logits.shape[-1]
        top = (images.shape[-1] - size) // 2
        instances = warped[:, 0, top : top + size, top : top + size]
        return self.loss(logits, (instances > 0).long(), self.weigh(instances))


def test_a_network_of_all_layers_is_exported(generator):
    net, draw = Layers().eval(), Draw(generator)
    first, second = ((draw.image(n, 2, side, side), draw.labels(n, side, side)) for n, side in ((2, 12), (3, 18)))
    automatic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(net, first, dynamic_shapes=(automatic, {d: torch.export.Dim.AUTO for d in range(3)}))
    used = {str(node.target).split(".")[1] for node in program.graph.nodes if str(node.target).startswith("unet_fast.")}
    assert used == set(OPS) & used and len(used) == 6
    for tensors in (first, second):
        torch.testing.assert_close(program.module()(*tensors), net(*tensors), **BY_DTYPE[torch.float32])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each_op
def test_autocast(name, dtype, backend, generator):
    """Convolutions are lowered, but for float64, as torch's are; everything else computes as it does without autocast."""
    op = OPS[name]
    drawn = op.sample(Draw(generator, dtype), 2, 9, 12)
    lower = op.autocast == "lower" and dtype != torch.float64
    # outside autocast the images and weights come in its dtype already; the biases stay as they are
    plain = [t.bfloat16() if lower and t.dtype == dtype and t.dim() > 1 else t for t in drawn]
    tensors, given = op.with_leaves(drawn), op.with_leaves(tuple(plain))
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = as_list(op.call(*tensors))
        expected = as_list(op.call(*given))
        wide = torch.promote_types(dtype, torch.float32)
        kind = {"kept": dtype, "lower": torch.bfloat16 if lower else dtype, "wide": wide, "float32": torch.float32}
        assert outputs[0].dtype == kind[op.autocast]
        torch.testing.assert_close(outputs, expected, **EXACT)
        if op.leaves:
            got, want = op.gradients(outputs, tensors), op.gradients(expected, given)
            assert [grad.dtype for grad in got] == [tensors[index].dtype for index in op.leaves]
            torch.testing.assert_close(got, want, **EXACT, check_dtype=False)


@pytest.mark.parametrize("call", [ops.up_conv_into, ops.up_conv_crop_concat, ops.conv_bias_relu])
def test_autocast_takes_no_integers(call):
    """They would be cast in silence, where torch's layers refuse them."""
    x, weight, skip = torch.ones(1, 2, 4, 4).long(), torch.ones(2, 2, 2, 2), torch.ones(1, 3, 8, 8)
    arguments = (x, weight, None) if call is ops.conv_bias_relu else (x, weight, None, skip)
    for autocast in (False, True):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            pytest.raises(InputError, match="x has dtype int64"),
        ):
            call(*arguments)
