"""Whether replaced modules compute what they computed before, and how long both take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from unet_fast.accelerate.patch import Patch, instead, plainly
from unet_fast.errors import first_line

# how far a replaced module's output may be from its own, in units of the largest number of it
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# And the gradient of a parameter, by Euclidean norms: of it, and of the largest gradient of all. ReLUs near 0 and batch
# norms of few pixels magnify rounding: in a U-Net with a ResNet-18 encoder, training on one image of 64 pixels by torch's
# own layers, a change of 1e-6 of each pixel changes a gradient by 9e-3, and in float64 ours differ by 1e-14. Gradients that are
# nothing but rounding, of a bias in front of a batch norm, reach 0.2 of the resolution of 16-bit numbers among all.
GRADIENT, AMONG_ALL = 1e-1, 1e-4
_ROUNDS = 3


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Put training modes, buffers and the state of random numbers back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=_cuda(model)), _uncompiled():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        _put_back(buffers)


def _put_back(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(before)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let what ``torch.compile`` wrapped, inside of the network or as a whole, run as it is."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and it takes long to load
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _cuda(model: nn.Module) -> list[int]:
    return sorted({tensor.get_device() for tensor in model.parameters() if tensor.is_cuda})


def example_for(model: nn.Module) -> Tensor | None:
    """An image that ``model`` takes, drawn to fit its first convolution, or None where none was found."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.weight.device.type == "meta":
        return None
    for size in (64, 128, 188, 256):
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(2, first.in_channels, size, size, generator=generator).to(first.weight)
        try:
            with held(model), torch.no_grad(), instead(plainly):
                model.eval()(image)
        except Exception:  # somebody's network: whatever it raises, this image is not one of its inputs
            continue
        return image
    return None


def refusal(model: nn.Module, args: tuple[Any, ...]) -> str | None:
    """Why the network does not train on these inputs, which it may take in evaluation: batch norms want several numbers."""
    try:
        with held(model), torch.no_grad(), instead(plainly):
            model.train()(*cloned(args))
    except Exception as error:  # somebody's network
        return first_line(error)
    return None


def differing(model: nn.Module, args: tuple[Any, ...], trains: bool) -> dict[int, str]:
    """Run ``model`` with each patch beside the module's own forward, in evaluation and, where it ``trains``, in training.

    Returns what was wrong, by the id of the module.
    """
    wrong: dict[int, str] = {}
    for training in (False, True) if trains else (False,):
        with held(model), torch.no_grad():
            model.train(training)
            with instead(_Beside(wrong)):
                model(*cloned(args))
    return wrong


class _Beside:
    """For :func:`instead`: compare a patch with the forward that it replaces, and go on with the latter's result."""

    def __init__(self, wrong: dict[int, str]) -> None:
        self.wrong = wrong

    def __call__(self, patch: Patch, args: Any, kwargs: Any) -> Any:
        module = patch.module
        before = [buffer.clone() for buffer in module.buffers()]
        with torch.random.fork_rng(devices=_cuda(module)):
            try:
                with instead(None):
                    fast = patch(*cloned(args), **cloned(kwargs))
            except Exception as error:  # a shape that the operators refuse: the module's own forward decides
                fast = error
        changed = [buffer.clone() for buffer in module.buffers()]
        _put_back(zip(module.buffers(), before, strict=True))
        plain = patch.plain(*args, **kwargs)
        if isinstance(fast, Exception):
            self.wrong.setdefault(id(module), f"the operators refuse its inputs ({first_line(fast)})")
            return plain
        why = difference((fast, changed), (plain, list(module.buffers())))
        if why is not None:
            self.wrong.setdefault(id(module), why)
        return plain


def difference(fast: Any, plain: Any) -> str | None:
    """What is wrong with ``fast``, a structure of tensors, beside ``plain``; None where they agree."""
    (ours, shape), (theirs, own_shape) = tree_flatten(fast), tree_flatten(plain)
    if shape != own_shape or list(map(type, ours)) != list(map(type, theirs)):
        return f"it returns {_words(ours, shape)} in place of {_words(theirs, own_shape)}"
    for got, expected in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return f"it returns {_words([got])} in place of {_words([expected])}"
        off, scale = largest(got, expected), size(expected)
        if not off <= TOLERANCE.get(expected.dtype, 0.0) * scale:
            return f"its output differs by {off:.2g} where the largest number is {scale:.2g}"
    return None


def _words(leaves: list[Any], shape: Any = None) -> str:
    if len(leaves) != 1:
        return str(shape).replace("PyTreeSpec", "")
    (one,) = leaves
    return f"{type(one).__name__} {tuple(one.shape)} {one.dtype}" if isinstance(one, Tensor) else type(one).__name__


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors in a structure, and in objects in it, which some networks return."""
    found = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_of(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not callable(leaf):
            found += tensors_of(list(vars(leaf).values()))
    return found


def largest(got: Tensor, expected: Tensor) -> float:
    """The largest difference; NaN and infinities count where they are not the same in both."""
    if got.numel() == 0:
        return 0.0
    same = (got == expected) | (got.isnan() & expected.isnan())
    return torch.where(same, 0.0, (got.double() - expected.double()).abs()).max().item()


def size(tensor: Tensor) -> float:
    """The largest finite number of a tensor."""
    return torch.nan_to_num(tensor.double(), 0.0, 0.0, 0.0).abs().max().item() if tensor.numel() else 0.0


def outputs_apart(model: nn.Module, args: tuple[Any, ...]) -> tuple[float, float]:
    """The largest difference of the network's outputs in evaluation, and their largest number."""
    with held(model), torch.no_grad():
        model.eval()
        with instead(plainly):
            plain = tensors_of(model(*cloned(args)))
        fast = tensors_of(model(*cloned(args)))
    pairs = list(zip(fast, plain, strict=True))
    return max((largest(*pair) for pair in pairs), default=0.0), max((size(p) for _, p in pairs), default=0.0)


def gradients_differ(model: nn.Module, args: tuple[Any, ...], trains: bool) -> str | None:
    """What is wrong with the gradients of a step, in training or in evaluation, or None."""
    plain = _gradients(model, args, plainly, trains)
    blind = next((name for name, one in plain.items() if one is not None and not one.isfinite().all()), None)
    if blind is not None:
        return f"the gradient of {blind} is not finite on the example, so nothing can be compared"
    try:
        fast = _gradients(model, args, None, trains)
    except Exception as error:  # a shape that the operators refuse
        return f"with the network's modules replaced no gradient is computed ({first_line(error)})"
    wrong = _differing_gradients(plain, fast)
    missing = next((why for why in wrong.values() if isinstance(why, str)), None)
    if missing is not None or not wrong:
        return missing
    # Where a batch norm sees few numbers, rounding becomes as large as the gradient, by torch's own layers too.
    moved = _differing_gradients(plain, _gradients(model, tuple(map(_nudged, args)), plainly, trains))
    for name, off in wrong.items():
        allowed = moved.get(name, 0.0)
        if isinstance(off, float) and not (isinstance(allowed, float) and off <= 3 * allowed):
            return f"the gradient of {name} differs by {off:.2g} of its norm with the network's modules replaced"
    return None


def _gradients(model: nn.Module, args: tuple[Any, ...], mode: Any, trains: bool) -> dict[str, Tensor | None]:
    """Those of all parameters, of a sum of the outputs with random factors."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with held(model), torch.enable_grad(), instead(mode):
        torch.manual_seed(0)
        model.train(trains)
        heads = [head for head in tensors_of(model(*cloned(args))) if head.requires_grad]
        torch.manual_seed(1)
        # by shape: randn_like draws in the order of memory, which is ours to choose
        loss = sum((torch.randn(head.shape, dtype=head.dtype, device=head.device) * head).sum() for head in heads)
        if not (parameters and isinstance(loss, Tensor)):
            return {}
        return dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
        )


def _differing_gradients(plain: dict[str, Tensor | None], fast: dict[str, Tensor | None]) -> dict[str, float | str]:
    """By how much of its norm each gradient is off that is off by too much, or which is missing, in words."""
    most = max((grad.double().norm().item() for grad in plain.values() if grad is not None), default=0.0)
    wrong: dict[str, float | str] = {}
    for name, one in plain.items():
        other = fast.get(name)
        if (one is None) != (other is None):
            wrong[name] = (
                f"the gradient of {name} is {'missing' if other is None else 'there'} with the network's modules replaced"
            )
        if one is None or other is None:
            continue
        own, off = one.double().norm().item(), (other.double() - one.double()).norm().item()
        if not off <= GRADIENT * own + max(AMONG_ALL, torch.finfo(one.dtype).eps) * most:
            wrong[name] = off / max(own, 1e-300)
    return wrong


def _nudged(arg: Any) -> Any:
    """An image of which each number differs by about 1e-6 of itself, or as little as numbers of 16 bits can."""
    if not (isinstance(arg, Tensor) and arg.is_floating_point()):
        return arg
    noise = torch.randn(arg.shape, generator=torch.Generator().manual_seed(2)).to(arg.device)
    return (arg * (1 + max(1e-6, torch.finfo(arg.dtype).eps) * noise)).to(arg.dtype)


def times(model: nn.Module, args: tuple[Any, ...]) -> tuple[float, float]:
    """Seconds of a forward in evaluation, before and after, each the best of some rounds in turn."""
    best: dict[bool, float] = {}
    with held(model), torch.no_grad():
        model.eval()
        for _ in range(_ROUNDS + 1):  # the first of which allocates, and keeps transformed weights
            for fast in (False, True):
                mine = cloned(args)
                with instead(None if fast else plainly):
                    seconds = _timed(lambda mine=mine: model(*mine), _cuda(model))  # type: ignore[misc]
                best[fast] = min(seconds, best[fast]) if fast in best else float("inf")
    return best[False], best[True]


def _timed(call: Callable[[], Any], devices: list[int]) -> float:
    for device in devices:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    for device in devices:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def cloned(values: Any) -> Any:
    """A structure with copies of its tensors, which a network may write to."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)
