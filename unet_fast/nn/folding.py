"""Batch normalisation with fixed statistics as part of the convolution in front of it."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from unet_fast.ops._convolution import state_of

# weight -> (the state of all that went into it, folded weight, folded bias), as long as the weight lives
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def can_fold(norm: nn.Module, layer: nn.Conv2d) -> TypeGuard[nn.BatchNorm2d]:
    """Whether ``norm`` behind ``layer`` is a linear map of each channel that nobody differentiates or listens to."""
    return (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and not torch.is_grad_enabled()
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and norm.num_features == layer.out_channels
        and norm.running_mean.dtype == layer.weight.dtype
    )


def folded(norm: nn.BatchNorm2d, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The weight and bias of one convolution that does what ``layer`` and ``norm`` do, kept until one of them changes.

    With the statistics of ``norm``, ``gamma (w x + b - mean) / sqrt(var + eps) + beta``; computed in float64, so that
    the folded weights are as exact as weights can be.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
    (CVPR 2018), section 3.2.
    """
    parts = _parts(layer, norm)
    state = (norm.eps, state_of(parts))
    # without a state to compare, as in a compiled graph, nothing is kept and nothing looked up
    found = _kept.get(layer.weight) if state[1] is not None else None
    if found is not None and found[0] == state:
        return found[1], found[2]
    with torch.inference_mode(False), torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if layer.bias is not None:
            shift = shift + layer.bias.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        weight = (layer.weight.double() * scale[:, None, None, None]).to(layer.weight.dtype)
        bias = shift.to(layer.weight.dtype)
    if state[1] is not None:
        _kept[layer.weight] = (state, weight, bias)
    return weight, bias


def kept() -> list[Tensor]:
    """All folded weights and biases that are kept."""
    return [tensor for _, *folded in _kept.values() for tensor in folded]


def _parts(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Tensor]:
    parts = (layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return [tensor for tensor in parts if tensor is not None]
