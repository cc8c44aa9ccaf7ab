"""Which junctions of a network run as fused operators, and on which device that is faster.

A network computes the same either way, with the same parameters. So fusion is not part of a network's ``config``, and can
be changed at any time: ``net.fused = False``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from unet_fast.errors import InputError
from unet_fast.nn.conv_relu import fits
from unet_fast.ops import _backends, _protocol

# True, False or "auto": what a network's argument ``fused`` may be
Fused = bool | str


@dataclass(frozen=True)
class Fusion:
    """Which of the four kinds of junctions are fused.

    Attributes:
        convolutions: a 3x3 convolution, its bias and its ReLU (:func:`~unet_fast.ops.conv_bias_relu`).
        contracting: bias, ReLU, max-pool and the skip's crop (:func:`~unet_fast.ops.relu_pool_skip`).
        expanding: the up-convolution into the other half of the concatenated map
            (:func:`~unet_fast.ops.up_conv_into`, or :func:`~unet_fast.ops.up_conv_crop_concat` where the skip was
            computed apart from it).
        head: the last layer and the loss, in ``net.loss`` (:func:`~unet_fast.ops.head_cross_entropy`).
        in_place: whether the up-convolution may write into a map that exists already. Subclasses of tensors hand on views,
            which autograd does not let others write into, and what leaves an export has to be functional: a quantiser
            that reads the map before it is written calibrates with what happened to be there.
    """

    convolutions: bool
    contracting: bool
    expanding: bool
    head: bool
    in_place: bool = True


PLAIN = Fusion(convolutions=False, contracting=False, expanding=False, head=False)
FULL = Fusion(convolutions=True, contracting=True, expanding=True, head=True)

# What "auto" takes, by kind of device: what was measured to be faster there. Anything else stays with torch's layers.
#
# CPU, fused over plain (processor time of one thread, 32 channels, PyTorch 2.13), forward / with backward: contracting
#   0.41 / 0.11, expanding 0.96 / 0.52, head with loss 0.28 to 0.7 with backward. Convolutions run by Winograd's
#   algorithm in float32 (benchmarks/bench_conv3x3.py); in other dtypes they gain nothing (1.02 to 1.07 / 0.97 to 1.04).
#   Without Winograd: whole networks, forward / training step: channels-last 0.99 / 0.95 at 188 pixels, 0.99 / 0.93 at
#   380, 0.86 / 0.81 there in bfloat16, 0.95 / 0.90 for four of 284; contiguous 0.81 / 0.89 at 380.
#
# CUDA: all, because each moves fewer bytes than the layers it replaces, which is what bounds them on a GPU, as long as the
#   result files of whole networks say so too (unet_fast/ops/measured.json, written by benchmarks/backends.py).
AUTO = {"cpu": FULL, "cuda": FULL if _backends.FUSED_IS_FASTER else PLAIN}


def check_fused(fused: Fused) -> Fused:
    """``fused`` itself; raises ``InputError`` unless it is True, False or "auto"."""
    if not isinstance(fused, bool) and fused != "auto":
        raise InputError(f"fused is {fused!r}, expected True, False or 'auto'")
    return fused


def fusion_for(fused: Fused, x: Tensor) -> Fusion:
    """The junctions to fuse for an input like ``x``; "auto" leaves out those that only the slow reference could run.

    None while operations are transformed or traced one by one (:mod:`unet_fast.ops._protocol`).
    """
    if isinstance(x, fx.Proxy) or _protocol.transformed():
        return PLAIN
    if isinstance(fused, bool):
        wanted = FULL if fused else PLAIN
    else:
        wanted = _with_kernels(AUTO.get(x.device.type, PLAIN), x.device.type)
    in_place = type(x) is Tensor and not torch.compiler.is_exporting()
    return wanted if in_place or wanted == PLAIN else replace(wanted, in_place=False)


def _with_kernels(wanted: Fusion, device: str) -> Fusion:
    if wanted == PLAIN:
        return PLAIN
    return Fusion(
        wanted.convolutions and has_kernel("conv_bias_relu", device),
        wanted.contracting and has_kernel("relu_pool_skip", device),
        wanted.expanding and has_kernel("up_conv_into", device) and has_kernel("up_conv_crop_concat", device),
        wanted.head and has_kernel("head_cross_entropy", device),
    )


def has_kernel(op: str, device_type: str) -> bool:
    """Whether a compiled kernel would run; without one an explicit ``fused=True`` runs the reference."""
    return _backends.runs_compiled(op, device_type)


def untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``module`` is still one of these kinds and no hook listens to its calls, so that it may be bypassed.

    Layers that were replaced (low-rank adapters, quantised ones) or carry hooks are called as they are.
    """
    return type(module) in kinds and silent(module)


def silent(module: nn.Module) -> bool:
    """Whether no hook listens to the calls of ``module``."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def fusible_convolution(layer: nn.Module, *kinds: type[nn.Conv2d]) -> TypeGuard[nn.Conv2d]:
    """Whether the operators compute what this convolution (of one of ``kinds``, or a plain one) computes."""
    return untouched(layer, nn.Conv2d, *kinds) and isinstance(layer, nn.Conv2d) and fits(layer)


def fusible_up_convolution(layer: nn.Module) -> bool:
    """Whether :func:`~unet_fast.ops.up_conv_into` computes what this transposed convolution computes."""
    return (
        untouched(layer, nn.ConvTranspose2d)
        and isinstance(layer, nn.ConvTranspose2d)
        and layer.kernel_size == layer.stride == (2, 2)
        and layer.padding == layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def is_active(dropout: nn.Module) -> bool:
    """Whether this dropout does something, or a hook listens to it."""
    return not untouched(dropout, nn.Dropout) or (dropout.training and getattr(dropout, "p", 0.0) > 0)
