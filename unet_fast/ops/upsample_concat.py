"""Up-sampling of a map by 2, written straight into the map that joins it with a skip connection.

Kernels: csrc/cpu/upsample_concat.cpp, csrc/cuda/upsample_concat.cu, unet_fast/triton/upsample_concat.py; truth: unet_fast/reference/upsample_concat.py.
"""

from __future__ import annotations

from typing import Any

import torch

from unet_fast import checks, reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._small_joins import join_by_torch, steps_of_torch
from unet_fast.ops._tolerances import BY_DTYPE, GRADIENT

MODES = ("nearest", "bilinear")
ORDERS = ("skip_first", "up_first")
PADDINGS = (None, "zeros", "replicate")  # in the order of uf::Border; None: a larger skip is cropped


@_protocol.public
def upsample_concat(
    skip: torch.Tensor,
    x: torch.Tensor,
    *,
    mode: str = "nearest",
    align_corners: bool = False,
    order: str = "skip_first",
    padding: str | None = None,
) -> torch.Tensor:
    """Up-sample ``x`` by 2 and concatenate it with ``skip`` along the channels, in one pass.

    Args:
        skip: (N, C1, H, W), the feature map of the contracting path, contiguous or channels-last or a slice of either.
        x: (N, C2, h, w) with 2 h <= H and 2 w <= W, the map of the level below; same dtype and device. Under autocast the
            narrower dtype is widened, as ``torch.cat`` does. "nearest" takes any dtype of up to 8 bytes, "bilinear" floating ones.
        mode: "nearest" or "bilinear".
        align_corners: for "bilinear", as in ``F.interpolate``.
        order: "skip_first" or "up_first", which channels come first in the result.
        padding: what a larger skip means. None: its centre is joined, from ``(H - 2 h) // 2`` on; "zeros" and "replicate": the
            up-sampled map is padded to the size of the skip, ``(H - 2 h) // 2`` rows in front and the rest behind, with zeros
            or its outermost numbers.

    Returns:
        (N, C1 + C2, 2 h, 2 w), or (N, C1 + C2, H, W) with a padding; channels-last where both maps are. Interpolation is done in
        float32 (float64 for float64 maps). Gradients for both maps; that of the skip is a view where nothing is cropped. Second
        derivatives raise, but for small maps on a CPU, which are joined by torch's own operations unless a backend is asked for by
        name; ``unet_fast.reference.upsample_concat`` has them.

    Raises:
        InputError: ranks, batch sizes or devices that do not fit, a skip that is smaller than the up-sampled map, an unknown name,
            nothing that a padding could repeat.
        InputTypeError: not tensors, different dtypes outside autocast, integers for "bilinear".

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), with interpolation in place of the up-convolution; Odena, Dumoulin,
    Olah, Deconvolution and checkerboard artifacts (2016).

    Equivalent to, for a skip of the same size::

        torch.cat([skip, F.interpolate(x, scale_factor=2, mode=mode)], dim=1)
    """
    checks.check_choice("mode", mode, MODES)
    if mode == "bilinear":
        checks.check_tensor("x", x)
        checks.check_dtype("x", x, checks.FLOATING)
    elif align_corners:
        raise InputError("align_corners=True belongs to the mode 'bilinear'")
    steps = steps_of_torch(skip, x, 2, padding)
    if steps is not None:
        checks.check_choice("order", order, ORDERS)
        check_padding(padding)
        return join_by_torch(skip, x, steps, order, padding, mode, align_corners)
    skip, x = check_join(skip, x, "x", 2, order, padding)
    if _backends.choose("upsample_concat", x.device.type) == "reference":
        return reference.upsample_concat(skip, x, mode=mode, align_corners=align_corners, order=order, padding=padding)
    number = 1 if mode == "nearest" else 3 if align_corners else 2
    return _record.run(
        torch.ops.unet_fast.upsample_concat, skip, x, number, order == "up_first", PADDINGS.index(padding)
    )


def check_join(
    skip: torch.Tensor, x: torch.Tensor, name: str, factor: int, order: str, padding: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps, in one dtype, when ``x``, ``factor`` times as large, can be joined with the skip."""
    checks.check_tensor("skip", skip)
    checks.check_tensor(name, x)
    checks.check_choice("order", order, ORDERS)
    check_padding(padding)
    checks.check_rank("skip", skip, (4,), "(N, C, H, W)")
    checks.check_rank(name, x, (4,), "(N, C, H, W)")
    checks.check_same_device("skip", skip, name, x)
    if skip.dtype != x.dtype:
        if not _tensors.autocasts(skip.device.type):
            checks.check_same_dtype("skip", skip, name, x)
        wide = torch.promote_types(skip.dtype, x.dtype)
        skip, x = skip.to(wide), x.to(wide)
    if x.element_size() > 8:
        raise InputTypeError(f"{name} has dtype {str(x.dtype).removeprefix('torch.')}, expected one of at most 8 bytes")
    if skip.shape[0] != x.shape[0]:
        raise InputError(f"skip has batch size {skip.shape[0]} but {name} has {x.shape[0]}; expected the same")
    for full, part in zip(skip.shape[2:], x.shape[2:], strict=True):
        if full < factor * part:
            larger = "" if factor == 1 else f", up-sampled to {tuple(factor * side for side in x.shape[2:])}"
            raise InputError(
                f"skip of size {tuple(skip.shape[2:])} is smaller than {name} of size {tuple(x.shape[2:])}{larger}; "
                "only a larger or equal map can be joined: was the order of the arguments swapped?"
            )
        if padding == "replicate" and full > 0 and part == 0:
            raise InputError(f"{name} of size {tuple(x.shape[2:])} is empty, so a padding has nothing to repeat")
    return skip, x


def check_padding(padding: str | None) -> None:
    """Raise for a name that no padding has."""
    if padding is not None:
        checks.check_choice("padding", padding, [name for name in PADDINGS if name])


def _format(skip: torch.Tensor, x: torch.Tensor) -> torch.memory_format:
    """Channels-last for two channels-last maps; a skip of one channel fits either layout."""
    fits = skip.shape[1] == 1 or _tensors.is_channels_last(skip)
    return _tensors.dense_format(x) if fits else torch.contiguous_format


def _fake(skip: torch.Tensor, x: torch.Tensor, mode: int, up_first: bool, padding: int) -> torch.Tensor:
    factor = 2 if mode else 1
    size = skip.shape[2:] if padding else [factor * side for side in x.shape[2:]]
    return _tensors.new(x, [x.shape[0], skip.shape[1] + x.shape[1], *size], layout=_format(skip, x))


def _fake_backward(grad: torch.Tensor, size: list[int], mode: int, padding: int) -> torch.Tensor:
    return _tensors.new(grad, [*grad.shape[:2], *size], layout=_tensors.dense_format(grad))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    skip, x, ctx.mode, ctx.up_first, ctx.padding = inputs
    ctx.skip_shape, ctx.x_shape = skip.shape, x.shape


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    _record.no_second_derivative("upsample_concat")
    c1, c2 = ctx.skip_shape[1], ctx.x_shape[1]
    skip_at, x_at = (c2, 0) if ctx.up_first else (0, c1)
    grad_skip = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_skip = grad[:, skip_at : skip_at + c1]
        size = list(ctx.skip_shape[2:])
        if size != list(grad.shape[2:]):
            grad_skip = _record.run(torch.ops.unet_fast.crop_concat_backward, grad_skip, c1, size)
    if ctx.needs_input_grad[1]:
        grad_x = grad[:, x_at : x_at + c2]
        # what was only copied has a view of the gradient as its own
        if not ctx.mode and PADDINGS[ctx.padding] != "replicate":
            for dim, size in enumerate(ctx.x_shape[2:], 2):
                grad_x = grad_x.narrow(dim, (grad_x.shape[dim] - size) // 2, size)
        elif ctx.mode or list(ctx.x_shape[2:]) != list(grad.shape[2:]):
            grad_x = _record.run(
                torch.ops.unet_fast.upsample_concat_backward, grad_x, list(ctx.x_shape[2:]), ctx.mode, ctx.padding
            )
    return grad_skip, grad_x, None, None, None


_record.register(
    _record.Op(
        upsample_concat,
        (
            _record.Operator(
                "upsample_concat(Tensor skip, Tensor x, int mode, bool up_first, int padding) -> Tensor",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "upsample_concat_backward(Tensor grad, SymInt[] size, int mode, int padding) -> Tensor", _fake_backward
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 3, 2 * h + 1, 2 * w + 2), d.image(n, 2, h, w)),
        arguments=lambda skip, x: ((skip, x), {"mode": "bilinear", "padding": "replicate", "order": "up_first"}),
        tolerance=BY_DTYPE,
        leaves=(0, 1),
        gradient=GRADIENT,
    )
)
