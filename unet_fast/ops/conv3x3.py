"""A 3x3 convolution of one map, or of several that are joined, with bias and activation in its epilogue.

On a CPU by Winograd's F(4x4, 3x3) where that is the faster way: csrc/cpu/winograd.cpp and winograd_isa.h, called by
csrc/bindings/torch_cpu/conv3x3.cpp; everything else is left to torch. Truth: unet_fast/reference/conv3x3.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError
from unet_fast.ops import _convolution, _protocol, _record, _tensors
from unet_fast.ops._tolerances import CONVOLUTION, WINOGRAD_GRADIENT

# the numbers of winograd::Activation
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}


@_protocol.public
def conv3x3(
    inputs: torch.Tensor | Sequence[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    padding: int = 0,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """``activation(conv2d(cat(inputs, 1), weight, bias, padding=padding))`` for 3x3 kernels and stride 1.

    Args:
        inputs: (N, C, H, W), or a sequence of maps (N, C_i, H, W) that are joined along their channels; float32,
            float64, float16 or bfloat16; contiguous, channels-last, or slices of either, such as a centre crop.
        weight: (K, C, 3, 3), C = sum of C_i, same dtype and device. Under autocast all are cast to its dtype (not
            float64).
        bias: (K,) floating, or None.
        padding: 0 or 1 rows and columns of zeros around the maps.
        activation: None, "relu" or "leaky_relu".
        negative_slope: of the leaky ReLU, 0 or more.

    Returns:
        (N, K, H + 2 * padding - 2, W + 2 * padding - 2). On a CPU, in float32, by Winograd's F(4x4, 3x3) where that was
        measured to be faster (``unet_fast.ops.use_convolution``): 36 multiplications where the direct form takes 144, in
        the layout of the first input (one channel has no layout: then in that of the weights); several inputs are read where they lie, so that their joined map is never
        written. Its rounding errors are up to three times those of torch's direct form (docs/drop-in.md has
        figures, also of the cases with more). A NaN or an infinity in the
        input or the weights reaches every output that it reaches in the direct form, as NaN or infinity, and may reach
        other pixels of the same 4x4 tile. Equal inputs give equal bits for any number of threads. Elsewhere, and
        for second derivatives, torch's own convolution.

    Raises:
        InputError: shapes or devices that do not fit, another padding or activation, a negative slope.
        InputTypeError: not tensors, or dtypes that differ or are not floating.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), with other points: 0, 5/8,
    -5/8, 3/2, -3/2 and infinity.

    Equivalent to::

        F.relu(F.conv2d(torch.cat(inputs, 1), weight, bias, padding=padding))
    """
    maps = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    if not maps:
        raise InputError("inputs is empty, expected at least one map")
    checks.check_tensor("weight", weight)
    if padding not in (0, 1):
        raise InputError(f"padding is {padding}, expected 0 or 1")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation is {activation!r}, expected None, 'relu' or 'leaky_relu'")
    if not negative_slope >= 0:
        raise InputError(f"negative_slope is {negative_slope}, expected 0 or more")
    for i, map_ in enumerate(maps):
        name = "inputs" if len(maps) == 1 else f"inputs[{i}]"
        checks.check_tensor(name, map_)
        checks.check_rank(name, map_, (4,), "(N, C, H, W)")
        checks.check_same_device(name, map_, "weight", weight)
        maps[i], cast = _tensors.autocast_pair(map_, weight)
        if (map_.shape[0], *map_.shape[2:]) != (maps[0].shape[0], *maps[0].shape[2:]):
            raise InputError(
                f"{name} has shape {tuple(map_.shape)}, expected the batch, height and width of inputs[0], "
                f"{tuple(maps[0].shape)}"
            )
    channels = [map_.shape[1] for map_ in maps]
    if weight.dim() != 4 or weight.shape[1] != sum(channels) or tuple(weight.shape[2:]) != (3, 3):
        raise InputError(f"weight has shape {tuple(weight.shape)}, expected (K, {sum(channels)}, 3, 3)")
    if min(maps[0].shape[2:]) + 2 * padding < 3:
        raise InputError(
            f"inputs of shape {tuple(maps[0].shape)} with padding {padding} are smaller than the kernel, (3, 3)"
        )
    if bias is not None:
        bias = _tensors.wide_bias(bias, maps[0], weight.shape[0])
    if not _convolution.by_winograd(maps, cast, padding):
        return reference.conv3x3(
            maps, cast, bias, padding=padding, activation=activation, negative_slope=negative_slope
        )
    return run(maps, cast, bias, padding, activation, negative_slope)


def run(
    maps: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: int,
    activation: str | None,
    negative_slope: float = 0.0,
) -> torch.Tensor:
    """Winograd's form of checked operands, with kept weights where they may be kept."""
    kept = _convolution.transformed(weight, [map_.shape[1] for map_ in maps])
    slope = negative_slope if activation == "leaky_relu" else 0.0
    number = ACTIVATIONS[activation]
    return _record.run(torch.ops.unet_fast.conv3x3, maps, weight, bias, kept, padding, number, slope)


def conv3x3_pool(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: int,
    skip_size: Sequence[int] | None,
    up_channels: int,
    first: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A convolution and :func:`unet_fast.ops.relu_pool_skip` behind it in one operator, whose full map is never written.

    ``first``: the weight and the bias of another convolution in front of it, of an image ``x`` of few channels, with the same
    padding and a ReLU; its map is never written either. None where gradients are recorded, or where the parts by
    themselves are the way: other layouts, sizes that are too small.
    """
    tensors = (x, weight, bias, *(first or ()))
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    lost = (2 - 2 * padding) * (2 if first else 1)
    height, width = (size - lost for size in x.shape[2:])
    if recorded or min(height, width) < 2 or _tensors.autocast_dtype(x) is not None:
        return None
    if first and not (0 < x.shape[1] <= _convolution.THIN and _convolution.by_winograd([x], first[0], padding)):
        return None
    last = _result_format(x, first[0]) == torch.channels_last if first else _tensors.is_channels_last(x)
    if not last or not _convolution.by_winograd([x], weight, padding):
        return None
    kept = _convolution.transformed(weight, [weight.shape[1]])
    size = (height, width) if skip_size is None else tuple(skip_size)
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.unet_fast.conv3x3_pool(
        [x], weight, bias, kept, padding, size, up_channels, *(first or ())
    )
    return result


def _result_format(x: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """The layout of the result: see csrc/bindings/torch_cpu/conv3x3.cpp."""
    if x.shape[1] == 1:
        return torch.channels_last if x.stride(1) == 1 or weight.stride(1) == 1 else torch.contiguous_format
    return _tensors.dense_format(x)


def _fake_pool(
    inputs: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    transformed: torch.Tensor | None,
    padding: int,
    skip_size: list[int],
    up_channels: int,
    first_weight: torch.Tensor | None = None,
    first_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, _, height, width = inputs[0].shape
    channels, layout = weight.shape[0], _result_format(inputs[0], weight if first_weight is None else first_weight)
    lost = (2 - 2 * padding) * (1 if first_weight is None else 2)
    half = ((height - lost) // 2, (width - lost) // 2)
    return (
        _tensors.new(weight, (n, channels, *half), layout=layout),
        _tensors.new(weight, (n, channels + up_channels, *skip_size), layout=layout),
    )


def _fake(
    inputs: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    transformed: torch.Tensor | None,
    padding: int,
    activation: int,
    slope: float,
) -> torch.Tensor:
    n, _, height, width = inputs[0].shape
    shape = (n, weight.shape[0], height + 2 * padding - 2, width + 2 * padding - 2)
    return torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=_result_format(inputs[0], weight))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    maps, weight, _, _, ctx.padding, activation, slope = inputs
    ctx.slope, ctx.active = slope, activation != ACTIVATIONS[None]
    ctx.save_for_backward(weight, *([output] if ctx.active else []), *maps)


def _fake_backward(
    grad: torch.Tensor,
    inputs: list[torch.Tensor],
    weight: torch.Tensor,
    out: torch.Tensor | None,
    padding: int,
    slope: float,
    want_inputs: bool,
    want_weight: bool,
    want_bias: bool,
) -> list[torch.Tensor]:
    def like(tensor: torch.Tensor, wanted: bool) -> torch.Tensor:
        if not wanted:
            return weight.new_empty(0)
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=_tensors.dense_format(tensor)
        )

    grads = [like(map_, want_inputs) for map_ in inputs]
    return [*grads, like(weight, want_weight), weight.new_empty(weight.shape[0] if want_bias else 0)]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    weight, *saved = ctx.saved_tensors
    out = saved.pop(0) if ctx.active else None
    want_maps, want_weight, want_bias = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():  # create_graph=True: by operators that have derivatives themselves
        *grads, grad_weight, grad_bias = _plain_backward(grad, saved, weight, out, ctx.padding, ctx.slope)
    else:
        *grads, grad_weight, grad_bias = _record.run(
            torch.ops.unet_fast.conv3x3_backward,
            grad,
            saved,
            weight,
            out,
            ctx.padding,
            ctx.slope,
            any(want_maps),
            want_weight,
            want_bias,
        )
    return (
        [g if wanted else None for g, wanted in zip(grads, want_maps, strict=True)],
        grad_weight if want_weight else None,
        grad_bias if want_bias else None,
        *[None] * 4,
    )


def _plain_backward(
    grad: torch.Tensor,
    maps: list[torch.Tensor],
    weight: torch.Tensor,
    out: torch.Tensor | None,
    padding: int,
    slope: float,
) -> list[torch.Tensor]:
    """All gradients by torch's own convolution."""
    if out is not None:
        grad = torch.where(out <= 0, slope * grad, grad)
    x = torch.cat(maps, 1)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], [1, 1], [padding, padding], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    return [*grad_x.split([map_.shape[1] for map_ in maps], 1), grad_weight, grad_bias]


def _fake_weights(weight: torch.Tensor, channels: list[int]) -> torch.Tensor:
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size())


def _fake_fingerprint(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0].new_empty((), dtype=torch.int64)


def _flops(
    inputs: Sequence[Sequence[int]],
    weight: Sequence[int],
    bias: Any,
    transformed: Any,
    padding: int,
    *_: Any,
    **__: Any,
) -> int:
    """Of the direct form, so that figures compare; Winograd's needs a quarter of the multiplications."""
    outputs = inputs[0][0] * math.prod(size + 2 * padding - 2 for size in inputs[0][2:])
    return 2 * outputs * math.prod(weight)


def _flops_backward(
    grad: Any,
    inputs: Sequence[Sequence[int]],
    weight: Sequence[int],
    out: Any,
    padding: int,
    slope: float,
    want_inputs: bool,
    want_weight: bool,
    *_: Any,
    **__: Any,
) -> int:
    return (want_inputs + want_weight) * _flops(inputs, weight, None, None, padding)


_record.register(
    _record.Op(
        conv3x3,
        (
            _record.Operator(
                "conv3x3(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? transformed, SymInt padding, "
                "int activation, float slope) -> Tensor",
                _fake,
                _backward,
                _setup_context,
                _flops,
            ),
            _record.Operator(
                "conv3x3_backward(Tensor grad, Tensor[] inputs, Tensor weight, Tensor? out, SymInt padding, "
                "float slope, bool want_inputs, bool want_weight, bool want_bias) -> Tensor[]",
                _fake_backward,
                flops=_flops_backward,
            ),
            _record.Operator("conv3x3_weights(Tensor weight, SymInt[] channels) -> Tensor", _fake_weights),
            _record.Operator(
                "conv3x3_pool(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? transformed, SymInt padding, "
                "SymInt[] skip_size, SymInt up_channels, Tensor? first_weight=None, Tensor? first_bias=None) "
                "-> (Tensor pooled, Tensor buffer)",
                _fake_pool,
            ),
            _record.Operator("fingerprint(Tensor[] tensors) -> Tensor", _fake_fingerprint),
        ),
        sample=lambda d, n, h, w: (
            *(d.whole(n, c, h, w).contiguous(memory_format=d.form) for c in (16, 3)),
            d.whole(17, 19, 3, 3),
            d.wide(17).round() + 0.5,
        ),
        arguments=lambda x, y, weight, bias: (([x, y], weight, bias), {"padding": 1, "activation": "leaky_relu"}),
        tolerance=CONVOLUTION,
        leaves=(0, 1, 2, 3),
        gradient=WINOGRAD_GRADIENT,
        second=True,
        autocast="lower",
    )
)
