"""Normalisation and activation in plain PyTorch, from the definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_fast.dtypes import wide


def norm_activation(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "instance",
    num_groups: int | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    slope: float | Tensor = 0.01,
) -> Tensor:
    """See :func:`unet_fast.ops.norm_activation`. Differentiable any number of times."""
    dtype = wide(x.dtype)
    n, channels = x.shape[:2]
    values = x.to(dtype).unsqueeze(-1).flatten(2)
    if running_mean is not None and running_var is not None and not training:
        mean, var = (number.to(dtype).view(1, -1, 1) for number in (running_mean, running_var))
    else:
        groups = {"instance": channels, "group": num_groups}.get(norm)
        parts = values.unsqueeze(1) if groups is None else values.unflatten(1, (groups, channels // groups))
        axes = (0, 3) if groups is None else (2, 3)
        mean = parts.double().mean(axes, keepdim=True)
        var = (parts.double() - mean).square().mean(axes, keepdim=True)
        if running_mean is not None and running_var is not None and x.numel():
            count = parts.numel() // mean.numel()
            with torch.no_grad():
                for running, now in ((running_mean, mean), (running_var, var * (count / max(count - 1, 1)))):
                    running.lerp_(now.reshape(-1, channels).mean(0).to(running.dtype), momentum)
        shape = (1, channels, 1) if groups is None else (n, groups, 1)
        each = 1 if groups is None else channels // groups
        mean, var = (number.reshape(shape).repeat_interleave(each, 1).to(dtype) for number in (mean, var))
    out = (values - mean) * (var + eps).rsqrt()
    for number, apply in ((weight, torch.mul), (bias, torch.add)):
        if number is not None:
            out = apply(out, number.to(dtype).view(-1, 1))
    return activated(out, activation, slope).to(x.dtype).view(x.shape)


def activated(z: Tensor, activation: str, slope: float | Tensor) -> Tensor:
    """The activation of (N, C, pixels)."""
    if activation == "relu":
        return F.relu(z)
    if activation == "silu":
        return F.silu(z)
    if activation == "prelu":
        assert isinstance(slope, Tensor)
        return F.prelu(z, slope.to(z.dtype))
    if activation == "leaky_relu":
        assert not isinstance(slope, Tensor)
        return F.leaky_relu(z, slope)
    return z
