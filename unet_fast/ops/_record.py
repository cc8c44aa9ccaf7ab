"""One record an operator: every fact about it that something else goes through, in one place.

The file of an operator ends with its record. Registration with torch, tests, opcheck, fuzzing, the check of a GPU, benchmarks
and ``unet-fast info`` go through :data:`OPS`; none of them has a list of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from unet_fast import reference
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _library

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# name -> record, in the order of registration
OPS: dict[str, Op] = {}
_BY_NAME: dict[str, Operator] = {}  # those of all records

_LIBRARY = torch.library.Library("unet_fast", "FRAGMENT")


@dataclass(frozen=True)
class Draw:
    """Fresh random tensors for samples: images of one dtype and layout, and what goes with them.

    The numbers come from ``generator``, a generator of the CPU, so that they are the same on every device.
    """

    generator: torch.Generator
    dtype: torch.dtype = torch.float32
    form: torch.memory_format = torch.contiguous_format
    device: str = "cpu"

    def image(self, *shape: int) -> Tensor:
        """(N, C, H, W), normally distributed, in the dtype and layout of the draw."""
        return self.same(*shape).contiguous(memory_format=self.form)

    def same(self, *shape: int) -> Tensor:
        """As :meth:`image`, of any shape: a parameter that has the dtype of the images."""
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def whole(self, *shape: int) -> Tensor:
        """As :meth:`same`, but whole numbers from -2 to 2: sums of some hundred products are exact in every order.

        A ReLU behind a convolution then cuts the same elements with every library.
        """
        return torch.randint(-2, 3, shape, generator=self.generator).to(self.device, self.dtype)

    def wide(self, *shape: int) -> Tensor:
        """A parameter that is float32 beside narrower images, float64 beside float64 ones."""
        return torch.randn(shape, generator=self.generator).to(
            self.device, torch.promote_types(self.dtype, torch.float32)
        )

    def labels(self, *shape: int, classes: int = 3) -> Tensor:
        """int64, 0 to ``classes - 1``."""
        return torch.randint(0, classes, shape, generator=self.generator).to(self.device)


@dataclass(frozen=True)
class Operator:
    """One entry in torch's dispatcher: the operator behind a public function, its in-place form or its backward.

    Attributes:
        schema: name, arguments and results, in torch's language. The kernels of every backend have this signature.
        fake: allocates the results, uninitialised, in their shapes, dtypes and layouts, and nothing else.
        backward, setup_context: autograd, see ``torch.library.register_autograd``.
        flops: a formula in the way of ``torch.utils.flop_counter``, from the shapes of the arguments.
    """

    schema: str
    fake: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    setup_context: Callable[..., Any] | None = None
    flops: Callable[..., int] | None = None

    @property
    def name(self) -> str:
        return self.schema[: self.schema.index("(")]

    def register(self) -> None:
        """Tell torch."""
        _LIBRARY.define(self.schema)
        qualified = f"unet_fast::{self.name}"
        torch.library.register_fake(qualified, self.fake, lib=_LIBRARY)
        if self.backward is not None:
            torch.library.register_autograd(qualified, self.backward, setup_context=self.setup_context, lib=_LIBRARY)


def _as_they_are(*tensors: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tensors, {}


def _all_bytes(tensors: list[Tensor], outputs: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *outputs))


@dataclass(frozen=True)
class Op:
    """What is known of one public operator.

    Attributes:
        public: the function of unet_fast.ops.
        operators: its entries in torch's dispatcher, the one of its own name first.
        sample: random tensors for a batch of n images of h x w (at least 4 x 5), as ``sample(draw, n, h, w)``.
        arguments: from these tensors to the arguments of the function, positional and by name.
        leaves: the tensors that get gradients.
        second: whether it has second derivatives.
        autocast: the dtype of its result: "kept" from the input, "lower" (that of autocast), "wide" (float32, float64 for
            float64) or "float32".
        tolerance: of a result against the reference in the same dtype, by the dtype of the images.
        gradient: of a gradient against that of the reference, over its largest number.
        truth_beside: the reference runs on the device of the tensors and not on the CPU, because it is torch's convolution,
            which some processors add up in half precision.
        least_bytes: what any implementation has to read and write, from the tensors of a sample and the results; by
            default all of them, once.
    """

    public: Callable[..., Any]
    operators: tuple[Operator, ...]
    sample: Callable[[Draw, int, int, int], tuple[Tensor, ...]]
    tolerance: Mapping[torch.dtype, Mapping[str, Any]]
    arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] = _as_they_are
    leaves: tuple[int, ...] = ()
    gradient: Mapping[torch.dtype, float] = field(default_factory=lambda: dict.fromkeys(FLOATS, 0.0))
    second: bool = False
    autocast: str = "kept"
    truth_beside: bool = False
    least_bytes: Callable[[list[Tensor], list[Tensor]], int] = _all_bytes

    @property
    def name(self) -> str:
        """The same everywhere: of the function, of its files and of its kernels."""
        return self.public.__name__

    def call(self, *tensors: Tensor) -> Any:
        """The public function of the tensors of a sample."""
        positional, named = self.arguments(*tensors)
        return self.public(*positional, **named)

    def truth(self, *tensors: Tensor) -> Any:
        """The reference of the same tensors."""
        positional, named = self.arguments(*tensors)
        return getattr(reference, self.name)(*positional, **named)

    def with_leaves(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """A sample's tensors in a graph of their own, as they lie in memory, those of :attr:`leaves` recording gradients."""
        return [tensor.detach().requires_grad_(index in self.leaves) for index, tensor in enumerate(tensors)]

    def gradients(self, outputs: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        """Of a sum in which every number has another factor, from 0.5 to 2.5: none is the same everywhere, few cancel."""
        heads = [output for output in outputs if output.requires_grad]
        # made on the device, also while a graph is captured; sixteenths are exact in every dtype, and cancel in no sum
        numbers = [torch.arange(head.numel(), device=head.device).view(head.shape) for head in heads]
        factors = [(number * 7 % 31 + 1).to(head.dtype) / 16 for number, head in zip(numbers, heads, strict=True)]
        return list(torch.autograd.grad(heads, [tensors[index] for index in self.leaves], factors))

    def results(self, tensors: list[Tensor], call: Callable[..., Any] | None = None) -> list[Tensor]:
        """What :meth:`call` (or another callable in its place) returns, then the gradients of the leaves, if any."""
        outputs = as_list((call or self.call)(*tensors))
        return [*outputs, *self.gradients(outputs, tensors)] if self.leaves else outputs

    def check(self, tensors: tuple[Tensor, ...]) -> None:
        """Raise ``AssertionError`` unless function and reference agree on a sample, with gradients where there are any.

        The reference runs on the CPU (see :attr:`truth_beside`), in the dtype of the tensors. The first of these says which tolerance counts.
        """
        here = self.with_leaves(tensors)
        there = self.with_leaves(tensors if self.truth_beside else tuple(tensor.cpu() for tensor in tensors))
        got, truth = self.results(here), self.results(there, self.truth)
        count, dtype = len(got) - len(self.leaves), tensors[0].dtype
        close = {**self.tolerance[dtype], "equal_nan": True}
        got, truth = [tensor.cpu() for tensor in got], [tensor.cpu() for tensor in truth]
        torch.testing.assert_close(got[:count], truth[:count], **close)
        for index, grad, exact in zip(self.leaves, got[count:], truth[count:], strict=True):
            largest = exact.abs().max().item() if exact.numel() else 0.0
            error = (grad - exact).abs().max().item() if exact.numel() else 0.0
            assert error <= self.gradient[dtype] * largest, (
                f"{self.name}: the gradient of argument {index} is off by {error}, its largest number is {largest}"
            )


def as_list(result: Any) -> list[Tensor]:
    """The outputs of a public function, which returns one tensor or a tuple."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def register(op: Op) -> Op:
    """Take up a record: tell torch about its operators, once the kernels are there, and see which backends have some."""
    assert op.operators[0].name == op.name
    OPS[op.name] = op
    _BY_NAME.update((operator.name, operator) for operator in op.operators)
    if _library.CPU.error is None:
        for operator in op.operators:
            operator.register()
    _backends.register(op.name, tuple(operator.name for operator in op.operators))
    return op


def operators() -> list[Operator]:
    """All entries in torch's dispatcher."""
    return list(_BY_NAME.values())


def allocate(name: str, *arguments: Any) -> Any:
    """The results of the operator ``name``, uninitialised: what its fake says, in memory. For kernels in Python."""
    return _BY_NAME[name].fake(*arguments)


def run(operator: Any, *arguments: Any) -> Any:
    """Call an operator of ``torch.ops.unet_fast``; what its kernel says of the caller's input is an :class:`InputError`.

    A kernel looks at the values of labels and targets while it reads them, so that nothing else has to. Its errors carry
    the code :data:`INPUT_ERROR` (csrc/bindings/tensor.h). In a compiled graph they stay RuntimeErrors.

    Autograd is that of the record. Where all tensors are torch's own it is reached without the detour that
    ``torch.library`` takes, which knows of every kind of tensor and costs more than a small map: some 80 us a step.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        if not all(map(_is_plain, arguments)):
            return operator(*arguments)
        if torch.is_grad_enabled():
            flat, counts = _flattened(arguments)
            if any(getattr(argument, "requires_grad", False) for argument in flat):
                return _Recorded.apply(*flat, counts, operator)  # type: ignore[no-untyped-call,unused-ignore]
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)
    except RuntimeError as error:
        _, code, text = str(error).splitlines()[0].partition(INPUT_ERROR)
        if code:
            raise InputError(text) from None
        raise


_NUMBERS = {bool, int, float, str, type(None)}
_TENSORS = {Tensor, torch.nn.Parameter}
_PLAIN = _NUMBERS | _TENSORS


def _is_plain(argument: Any) -> bool:
    """Whether this is a tensor of torch's own, a number, or a list of either."""
    kind = type(argument)
    return kind in _PLAIN or (kind in (list, tuple) and all(type(item) in _PLAIN for item in argument))


def _flattened(arguments: Sequence[Any]) -> tuple[list[Any], tuple[int | None, ...]]:
    """Lists of tensors taken apart, since autograd looks into none, and how many each held; None for the other arguments."""
    flat: list[Any] = []
    counts: list[int | None] = []
    for argument in arguments:
        held = type(argument) in (list, tuple) and any(type(item) in _TENSORS for item in argument)
        flat.extend(argument if held else [argument])
        counts.append(len(argument) if held else None)
    return flat, tuple(counts)


def _nested(flat: Iterable[Any], counts: Iterable[int | None]) -> tuple[Any, ...]:
    """As it was before :func:`_flattened`."""
    items = iter(flat)
    return tuple(next(items) if count is None else list(islice(items, count)) for count in counts)


class _Context:
    """The context of a record's formula, to which a list of tensors is one argument as in ``torch.library``."""

    def __init__(self, ctx: Any, counts: tuple[int | None, ...]) -> None:
        self._ctx, self.needs_input_grad = ctx, _nested(ctx.needs_input_grad, counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class _Recorded(torch.autograd.Function):
    """The autograd formula of a record, for torch's own tensors."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *flat, ctx.counts, operator = arguments
        ctx.record = _BY_NAME[operator.__name__]
        given = _nested(flat, ctx.counts)
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*given)
        ctx.record.setup_context(ctx, given, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = ctx.record.backward(_Context(ctx, ctx.counts), *grads)
        nested = zip(found if isinstance(found, tuple) else (found,), ctx.counts, strict=True)
        return (*chain.from_iterable([grad] if count is None else grad for grad, count in nested), None, None)


INPUT_ERROR = "[unet_fast.InputError] "


def no_second_derivative(name: str) -> None:
    """Raise in a backward pass that is being recorded itself (create_graph=True), where it would be silently wrong."""
    if torch.is_grad_enabled():
        raise InputError(
            f"{name} has no second derivative (create_graph=True); use unet_fast.reference.{name} where one is needed; "
            "behind uf.accelerate, report.undo() brings torch's own layers back"
        )


def is_plain_one(grad_output: Tensor) -> bool:
    """Whether a look at the value is free (eager, on the CPU) and says that there is nothing to scale."""
    return (
        type(grad_output) is Tensor
        and grad_output.device.type == "cpu"
        and grad_output.dim() == 0
        and grad_output.item() == 1.0
    )
