"""Normalisation and activation of a map in as few passes as its statistics allow.

Kernels: csrc/cpu and csrc/cuda, norm_activation and norm_activation_backward; unet_fast/triton/norm_activation.py;
truth: unet_fast/reference/norm_activation.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import NORM, NORM_GRADIENT

NORMS = ("instance", "batch", "group")
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "prelu")
_NUMBER = {"none": 0, "relu": 1, "leaky_relu": 2, "prelu": 2, "silu": 3}  # of uf::Activation


@_protocol.public
def norm_activation(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    norm: str = "instance",
    num_groups: int | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    slope: float | torch.Tensor = 0.01,
) -> torch.Tensor:
    """Normalise a map, multiply and shift each channel, and apply an activation.

    ``activation((x - mean) / sqrt(var + eps) * weight + bias)``, with mean and (biased) variance of each set of numbers that
    ``norm`` names.

    Args:
        x: (N, C, *S) with up to three spatial dimensions; float32, float64, float16 or bfloat16, contiguous or channels-last
            (other layouts are copied).
        weight, bias: (C,) floating, used in float32 (float64 for float64 maps); None for 1 and 0.
        norm: "instance": a set is one channel of one image; "batch": one channel of all images; "group": C / ``num_groups``
            channels, next to each other, of one image.
        num_groups: for "group" only; divides C.
        running_mean, running_var: (C,) floating, both or none, for "instance" and "batch". In training they move towards the
            statistics of ``x`` in place, as torch does it: ``r + momentum * (statistic - r)`` with the unbiased variance, for
            "instance" with the mean over the images. Otherwise they are the statistics, and constants of the gradient.
        training: whether the statistics are those of ``x``; without running statistics they always are.
        momentum: from 0 to 1, how far the running statistics move.
        eps: at least 0.
        activation: "none", "relu", "leaky_relu", "prelu" or "silu".
        slope: the factor of negative numbers, a number for "leaky_relu", a tensor (C,) or (1,) for "prelu".

    Returns:
        (N, C, *S), of the dtype and layout of ``x``; all arithmetic is float32 (float64), sums of many numbers are float64, and the
        variance does not lose its digits to a large mean. One pass for the statistics, one for the result; the backward pass
        keeps ``x`` and takes one pass for sums and one for the gradient. Gradients for ``x``, ``weight``, ``bias`` and a
        tensor ``slope``. Second derivatives raise; ``unet_fast.reference.norm_activation`` has them.

    Raises:
        InputError: shapes or devices that do not fit, an unknown name, a number out of range, one number a mean (for groups: one number in all), a second derivative.
        InputTypeError: not tensors, or not of a floating dtype.

    Source: Ioffe and Szegedy, Batch normalization (ICML 2015); Ulyanov et al., Instance normalization (2016); Wu and He, Group
    normalization (ECCV 2018).

    Equivalent to::

        z = F.instance_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        z = F.group_norm(x, num_groups, weight, bias, eps)
        F.relu(z), F.leaky_relu(z, slope), F.prelu(z, slope), F.silu(z)
    """
    checks.check_tensor("x", x)
    checks.check_rank("x", x, (2, 3, 4, 5), "(N, C, H, W), or up to three spatial dimensions")
    checks.check_dtype("x", x, checks.FLOATING)
    groups = _groups(x, norm, num_groups, running_mean)
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    numbers = {name: None if value is None else _of_channels(name, value, x) for name, value in given.items()}
    if (running_mean is None) != (running_var is None):
        raise InputError("running_mean and running_var come together; one of them is None")
    fixed = running_mean is not None and not training
    # of the whole batch for groups, as in torch, which takes one number a group as long as there are several images
    count = x.numel() // max(1, {"instance": x.shape[0] * x.shape[1], "batch": x.shape[1], "group": groups}[norm])
    if count == 1 and not fixed:
        raise InputError(
            f"x of shape {tuple(x.shape)} has one number for each mean and variance of the norm {norm!r}, expected more; "
            "use larger images or batches, or running statistics with training=False"
        )
    for name, value, most in (("momentum", momentum, 1.0), ("eps", eps, math.inf)):
        if not 0 <= value <= most:
            raise InputError(
                f"{name} is {value!r}, expected a number {'from 0 to 1' if most == 1.0 else 'of at least 0'}"
            )
    negative, slopes = _slope(x, activation, slope)
    if _backends.choose("norm_activation", x.device.type) == "reference":
        return reference.norm_activation(
            x, weight, bias, norm=norm, num_groups=num_groups, running_mean=running_mean, running_var=running_var,
            training=training, momentum=momentum, eps=eps, activation=activation, slope=slope if slopes is None else slopes,
        )  # fmt: skip
    statistics = (numbers["running_mean"], numbers["running_var"]) if fixed else (None, None)
    out, mean, var = _record.run(
        torch.ops.unet_fast.norm_activation,
        x,
        numbers["weight"],
        numbers["bias"],
        slopes,
        *statistics,
        0 if fixed else groups,
        eps,
        _NUMBER[activation],
        negative,
    )
    if running_mean is not None and running_var is not None and training and x.numel():
        with torch.no_grad():
            for running, now in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                of_channels = now if norm == "batch" else now.view(-1, x.shape[1]).mean(0)
                running.lerp_(of_channels.to(running.dtype), momentum)
    return out


def _groups(x: torch.Tensor, norm: str, num_groups: int | None, running: torch.Tensor | None) -> int:
    """As the operator counts them: sets of an image, 0 for the batch."""
    checks.check_choice("norm", norm, NORMS)
    if (num_groups is not None) != (norm == "group"):
        raise InputError(
            f"num_groups is {num_groups!r} for the norm {norm!r}; 'group' needs a number, the others have none"
        )
    if num_groups is None:
        return x.shape[1] if norm == "instance" else 0
    if running is not None:
        raise InputError("running statistics belong to the norms 'batch' and 'instance'; 'group' has none")
    if isinstance(num_groups, bool) or not isinstance(num_groups, int):
        raise InputTypeError(f"num_groups is {num_groups!r}, expected an integer")
    if num_groups < 1 or x.shape[1] % num_groups:
        raise InputError(f"num_groups is {num_groups}, expected a divisor of the {x.shape[1]} channels of x")
    return num_groups


def _of_channels(name: str, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Checked numbers of each channel, in the dtype that kernels use them in."""
    checks.check_tensor(name, value)
    checks.check_dtype(name, value, checks.FLOATING)
    checks.check_same_device("x", x, name, value)
    if value.shape != (x.shape[1],):
        raise InputError(f"{name} has shape {tuple(value.shape)}, expected ({x.shape[1]},), one number a channel")
    wide = _tensors.wide(x.dtype)
    return value if value.dtype == wide else value.to(wide)


def _slope(x: torch.Tensor, activation: str, slope: float | torch.Tensor) -> tuple[float, torch.Tensor | None]:
    """The slope of a leaky ReLU, or those of each channel."""
    checks.check_choice("activation", activation, ACTIVATIONS)
    if activation == "prelu":
        checks.check_tensor("slope", slope)
        assert isinstance(slope, torch.Tensor)
        return 0.0, _of_channels("slope", slope.expand(x.shape[1]) if slope.numel() == 1 else slope, x)
    if activation == "leaky_relu" and (isinstance(slope, torch.Tensor) or not math.isfinite(slope)):
        raise InputError(f"slope is {slope!r}, expected a finite number for 'leaky_relu'; a tensor is for 'prelu'")
    return float(slope) if activation == "leaky_relu" else 0.0, None


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    groups: int,
    eps: float,
    activation: int,
    negative: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = _tensors.new(x, x.shape, layout=_tensors.dense_format(x))
    sets = 0 if mean is not None else x.shape[0] * groups if groups else x.shape[1]
    wide = _tensors.wide(x.dtype)
    return out, _tensors.new(x, (sets,), wide), _tensors.new(x, (sets,), wide)


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    wide = _tensors.wide(x.dtype)
    numbers = (_tensors.new(x, (0 if given is None else x.shape[1],), wide) for given in (weight, bias, slope))
    return _tensors.new(x, x.shape, layout=_tensors.dense_format(x)), *numbers


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, slope, fixed_mean, fixed_var, *ctx.options = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.fixed = fixed_mean is not None
    ctx.save_for_backward(x, weight, bias, slope, *((fixed_mean, fixed_var) if ctx.fixed else (mean, var)))


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
    _record.no_second_derivative("norm_activation")
    if grad is None:
        return (None,) * 10
    x, weight, bias, slope, mean, var = ctx.saved_tensors
    arguments = (grad, x, weight, bias, slope, mean, var, *ctx.options, ctx.fixed)
    grad_x, *grads = _record.run(torch.ops.unet_fast.norm_activation_backward, *arguments)
    numbers = [None if given is None else one for given, one in zip((weight, bias, slope), grads, strict=True)]
    return grad_x, *numbers, *(None,) * 6


_record.register(
    _record.Op(
        norm_activation,
        (
            _record.Operator(
                "norm_activation(Tensor x, Tensor? weight, Tensor? bias, Tensor? slope, Tensor? mean, Tensor? var, "
                "int groups, float eps, int activation, float negative) -> (Tensor out, Tensor mean, Tensor var)",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "norm_activation_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? slope, Tensor mean, "
                "Tensor var, int groups, float eps, int activation, float negative, bool fixed) -> "
                "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_slope)",
                _fake_backward,
            ),
        ),
        # smooth, so that no rounding decides which side of a kink a number is on
        sample=lambda d, n, h, w: (d.image(n, 4, h, w), d.wide(4), d.wide(4)),
        arguments=lambda *tensors: (tensors, {"norm": "group", "num_groups": 2, "activation": "silu"}),
        tolerance=NORM,
        leaves=(0, 1, 2),
        gradient=NORM_GRADIENT,
    )
)
