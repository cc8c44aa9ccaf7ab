"""Other people's networks, made faster in place: :func:`accelerate`."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from unet_fast.accelerate import check
from unet_fast.accelerate.find import Left, find
from unet_fast.accelerate.inference import prepare
from unet_fast.accelerate.report import Report
from unet_fast.errors import InputError, InputTypeError, first_line
from unet_fast.models.wrapped import unwrapped

__all__ = ["Report", "accelerate"]


def accelerate(model: nn.Module, example: Any = None, *, inference: bool = False) -> Report:
    """Let a network's 3x3 convolutions, normalisations, activations and joins run by the operators of this package.

    Patterns are looked for in the modules as they are, whatever library they come from. The forward of a module in which
    something can be joined is replaced in that one instance; parameters, buffers, ``state_dict`` keys, hooks, dtype,
    device and training mode stay what they are, and a layer that carries a hook, or is exchanged later, is called as it
    is. Each replaced forward is run beside the module's own, in evaluation and in training, and taken back where they
    differ; so are all where gradients differ.

    Args:
        model: any network of 2-D layers; ``torch.compile`` and DistributedDataParallel may have wrapped it already.
        example: one input of the network, or a tuple of its inputs, to check and time with; None: noise that fits its
            first convolution.
        inference: for prediction only: the network is put into evaluation, records no gradients, and its weights and
            inputs become channels-last where that is faster on the example. Batch normalisations are part of the
            convolutions in front of them; without ``inference``, too, while no gradients are recorded.

    Returns:
        A :class:`Report`: ``print(report)``; ``report.undo()`` takes everything back. Calling ``accelerate`` again
        replaces nothing twice.

    Raises:
        InputTypeError: ``model`` is no ``nn.Module``, or left an export.
        InputError: the network does not take ``example``, or has lazy layers that have no sizes yet.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        >>> report = unet_fast.accelerate(net, torch.randn(1, 16, 32, 32))
        >>> [one.what for one in report.replaced]
        ['3x3 convolution + BatchNorm2d + ReLU', '3x3 convolution']
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model is {type(model).__name__}, expected a torch.nn.Module")
    inner = unwrapped(model)
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*inner.parameters(), *inner.buffers())):
        raise InputError("the network has layers without sizes (lazy ones); call it once on an image first")
    try:
        with check.held(inner):
            inner.eval()
    except NotImplementedError as error:  # what left an export
        raise InputTypeError(
            f"model is a {type(inner).__name__} that has no evaluation mode ({first_line(error)}); "
            "expected a network as it is before torch.export"
        ) from error
    with torch.inference_mode(False):  # which records nothing that could be compared
        report = _accelerate(inner, example, inference)
    if any(map(_is_compiled, model.modules())):
        torch._dynamo.reset()  # what was compiled before does not know of the new forwards
    return report


def _accelerate(model: nn.Module, example: Any, inference: bool) -> Report:
    args = check.cloned(example if isinstance(example, tuple) else (example,))
    if example is None:
        image = check.example_for(model)
        args = () if image is None else (image,)
    else:
        _try(model, args)
    replaced, left = find(model)
    report = Report(model, replaced, left)
    if not args:
        report.undo()
        report.replaced = []
        report.notes.append("nothing was replaced: no input was found that the network takes; give one as example=")
        return report
    report.example = " and ".join(_words(arg) for arg in args)
    _take_back(report, args)
    report.before, report.after = check.times(model, args)
    if not report.replaced:  # both are the same network
        report.after = report.before
    if inference:
        report.notes.append(prepare(model, args))
        report.after = check.times(model, args)[1]
    report.largest_difference, report.scale = check.outputs_apart(model, args)
    return report


def _try(model: nn.Module, args: tuple[Any, ...]) -> None:
    """Raise :class:`InputError` unless the network takes these inputs."""
    try:
        with check.held(model), torch.no_grad():
            model.eval()(*check.cloned(args))
    except Exception as error:  # somebody's network
        words = f"{' and '.join(map(_words, args))}: {first_line(error)}"
        raise InputError(f"the network does not take the example, {words}") from error


def _take_back(report: Report, args: tuple[Any, ...]) -> None:
    """Compare every replaced forward with the module's own, and remove those that differ."""
    refusal = check.refusal(report.model, args)
    if refusal is not None:
        report.notes.append(f"not compared in training, where the network does not take the example: {refusal}")
    while wrong := check.differing(report.model, args, refusal is None):
        kept = []
        for one in report.replaced:
            why = wrong.get(id(one.patch.module))
            if why is None:
                kept.append(one)
            else:
                one.patch.remove()
                report.left.append(_left(one.path, one.patch.module, why))
        report.replaced = kept
    try:
        why = check.gradients_differ(report.model, args, refusal is None)
    except Exception as error:  # somebody's network: one that keeps nothing for gradients, or has a loss in it
        why = None
        report.notes.append(
            f"gradients were not compared, as the network gives none on the example: {first_line(error)}"
        )
    if why is not None:
        report.left += [_left(one.path, one.patch.module, why) for one in report.replaced]
        report.undo()
        report.replaced = []


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _left(path: str, module: nn.Module, why: str) -> Left:
    return Left(path, type(module).__name__, why)


def _words(arg: Any) -> str:
    if isinstance(arg, Tensor):
        return f"{tuple(arg.shape)} {str(arg.dtype).removeprefix('torch.')} on {arg.device}"
    return type(arg).__name__


class _Callable(types.ModuleType):
    """``unet_fast.accelerate`` is this package once it was imported as one, and the function before; both are called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return accelerate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
