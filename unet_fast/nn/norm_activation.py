"""Normalisation and activation as one layer, with the parameters and the ``state_dict`` of torch's normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from unet_fast import checks
from unet_fast.errors import InputTypeError
from unet_fast.ops.norm_activation import ACTIVATIONS, norm_activation


def normalised(norm: nn.Module, x: Tensor, activation: str = "none", slope: float | Tensor = 0.01) -> Tensor:
    """What one of torch's normalisations and an activation behind it make of ``x``, running statistics included.

    Args:
        norm: ``nn.BatchNorm1d`` to ``3d``, ``nn.InstanceNorm1d`` to ``3d`` or ``nn.GroupNorm``, in training or not.
        x, activation, slope: see :func:`unet_fast.ops.norm_activation`, whose errors these are.

    Raises:
        InputTypeError: another module.

    Equivalent to::

        activation(norm(x))
    """
    if isinstance(norm, nn.GroupNorm):
        return norm_activation(
            x, norm.weight, norm.bias, norm="group", num_groups=norm.num_groups, eps=norm.eps, activation=activation,
            slope=slope,
        )  # fmt: skip
    if isinstance(norm, _InstanceNorm):
        own, training, momentum = "instance", norm.training or not norm.track_running_stats, norm.momentum or 0.0
    elif isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
        own, training, momentum = "batch", norm.training or norm.running_mean is None, _counted(norm)
    else:
        raise InputTypeError(f"norm is a {type(norm).__name__}, expected a batch, instance or group normalisation")
    kept = norm.track_running_stats or not norm.training
    return norm_activation(
        x, norm.weight, norm.bias, norm=own, running_mean=norm.running_mean if kept else None,
        running_var=norm.running_var if kept else None, training=training, momentum=momentum, eps=norm.eps,
        activation=activation, slope=slope,
    )  # fmt: skip


def _counted(norm: _BatchNorm) -> float:
    """Count the batch, where it is counted, and say how far the running statistics move: to their mean for no momentum."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


class _WithActivation(nn.Module):
    """The activation behind a normalisation; a learned slope for "prelu"."""

    activation: str
    slope: Any

    def _set(self, activation: str, slope: float | None, slopes: int) -> None:
        checks.check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        start = slope if slope is not None else 0.25 if activation == "prelu" else 0.01
        self.slope = nn.Parameter(torch.full((slopes,), start)) if activation == "prelu" else start

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of the normalised map."""
        return normalised(self, x, self.activation, self.slope)

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        shown = f", slope={self.slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{shown}"


class BatchNormActivation(_WithActivation, _BatchNorm):
    """``nn.BatchNorm1d``, ``2d`` or ``3d`` and an activation; see :func:`unet_fast.ops.norm_activation`.

    ``forward(x)``: (N, C, *S) -> the same shape. Arguments are those of ``nn.BatchNorm2d``, then ``activation`` ("relu" unless
    another is named), ``slope`` (0.01 for "leaky_relu"; where "prelu" starts, 0.25) and ``num_slopes`` (of "prelu", 1 or C).

    Equivalent to::

        nn.Sequential(nn.BatchNorm2d(...), nn.ReLU())
    """

    def __init__(
        self,
        num_features: int,
        *args: Any,
        activation: str = "relu",
        slope: float | None = None,
        num_slopes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_features, *args, **options)
        self._set(activation, slope, num_slopes)


class InstanceNormActivation(_WithActivation, _InstanceNorm):
    """``nn.InstanceNorm1d``, ``2d`` or ``3d`` and an activation; see :func:`unet_fast.ops.norm_activation`.

    ``forward(x)``: (N, C, *S) -> the same shape. Arguments are those of ``nn.InstanceNorm2d``, then ``activation`` ("leaky_relu"
    unless another is named), ``slope`` and ``num_slopes`` as for :class:`BatchNormActivation`.

    Equivalent to::

        nn.Sequential(nn.InstanceNorm2d(...), nn.LeakyReLU(slope))
    """

    def __init__(
        self,
        num_features: int,
        *args: Any,
        activation: str = "leaky_relu",
        slope: float | None = None,
        num_slopes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_features, *args, **options)
        self._set(activation, slope, num_slopes)


class GroupNormActivation(_WithActivation, nn.GroupNorm):
    """``nn.GroupNorm`` and an activation; see :func:`unet_fast.ops.norm_activation`.

    ``forward(x)``: (N, C, *S) -> the same shape. Arguments are those of ``nn.GroupNorm``, then ``activation`` ("relu" unless another
    is named), ``slope`` and ``num_slopes`` as for :class:`BatchNormActivation`.

    Equivalent to::

        nn.Sequential(nn.GroupNorm(...), nn.ReLU())
    """

    def __init__(
        self, num_groups: int, num_channels: int, *args: Any, activation: str = "relu", slope: float | None = None,
        num_slopes: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_groups, num_channels, *args, **options)
        self._set(activation, slope, num_slopes)
