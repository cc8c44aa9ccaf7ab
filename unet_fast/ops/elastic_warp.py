"""Elastic and affine warp of images, labels and weights by one field, in one pass.

Kernels: csrc/cpu/elastic_warp.cpp, csrc/cuda/elastic_warp.cu and elastic_warp_backward.cu,
unet_fast/triton/elastic_warp.py; truth: unet_fast/reference/elastic_warp.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch

from unet_fast import _warp_arguments as arguments
from unet_fast import checks, reference
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import _backends, _protocol, _record, _tensors
from unet_fast.ops._tolerances import LARGE_WARP, WARP_GRADIENT

if TYPE_CHECKING:
    from typing_extensions import Unpack

_DTYPES = (*checks.FLOATING, *checks.INTEGRAL, torch.bool)

OutputSize = int | Sequence[int] | Sequence[Sequence[int]]


class WarpOptions(TypedDict, total=False):
    """The keywords of :func:`elastic_warp`, which says what they mean and their defaults."""

    matrix: torch.Tensor | None
    output_size: OutputSize | None
    interpolation: str | Sequence[str] | None
    field: str
    padding: str
    fill: float | Sequence[float]


@overload
def elastic_warp(inputs: torch.Tensor, displacement: torch.Tensor, **options: Unpack[WarpOptions]) -> torch.Tensor: ...


@overload
def elastic_warp(
    inputs: Sequence[torch.Tensor], displacement: torch.Tensor, **options: Unpack[WarpOptions]
) -> tuple[torch.Tensor, ...]: ...


@_protocol.public
def elastic_warp(
    inputs: torch.Tensor | Sequence[torch.Tensor],
    displacement: torch.Tensor,
    *,
    matrix: torch.Tensor | None = None,
    output_size: OutputSize | None = None,
    interpolation: str | Sequence[str] | None = None,
    field: str = "bicubic",
    padding: str = "mirror",
    fill: float | Sequence[float] = 0.0,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Warp images by a smooth random field and an affine matrix: the augmentation of the U-Net.

    The frame is the H x W pixel grid of the inputs. Output pixel p of the frame takes the input's value at ::

        q(p) = c + A (p - c + u(p)) + t        c = ((H - 1) / 2, (W - 1) / 2),  matrix = [A | t]

    u is the displacement field, in output pixels: the image is first transformed by the matrix, then deformed. An
    output smaller than the frame is its centre, and only that is computed: ``warp(x)[crop] == warp(x, crop)``, bit for
    bit. To cut a tile from anywhere in a larger image, let t move its centre.

    Args:
        inputs: (N, C, H, W), or a tuple of such tensors (image, labels, weights, ...) with the same N, H, W and any C,
            that are warped by the same field. float32, float64, float16, bfloat16, uint8, int8, uint16, int16, or (with
            "nearest" only) int32, int64, bool. Any strides.
        displacement: (N, 2, gh, gw), pixels along y, then x, at gh x gw control points; a field for each sample.
            Floating dtype. A constant: it must not require gradients (the reference computes them).
        matrix: (N, 2, 3) or None for the identity; maps output pixels to input pixels, order y, x, relative to the
            centre of the image. Floating, a constant too.
        output_size: None for (H, W), a side, (h, w), or a sequence with one of these for each input; two integers are
            always one (h, w). The output starts at frame pixel ``(H - h) // 2`` (rounded down); h > H gives
            surroundings too.
        interpolation: "nearest" (pixel ``floor(q + 0.5)`` along each axis), "bilinear" or "bicubic" (Keys, a = -0.75);
            one name or one for each input. None is "bilinear" for floating inputs; integers may be grey values or labels, so
            theirs has to be named.
        field: how control points become a field; outside the frame it keeps its border value.
            "bicubic": Keys cubic convolution, a = -0.75, control points from the first to the last pixel, those of
            the border repeated: ``F.interpolate(displacement, (H, W), mode="bicubic", align_corners=True)``.
            "bspline": the cubic B-spline through control points at the same places, mirrored, as in elasticdeform.
            "bspline_smooth": uniform cubic B-spline, not through the points, one of which lies beyond each side: point
            1 on the first pixel, point gh - 2 on the last, so their spacing is (H - 1) / (gh - 3); the kernel of the
            authors' Caffe layers. At least 4 x 4 points.
        padding: what lies outside the input: "mirror" (``c b | a b c | b a``, repeated as often as needed), "zeros"
            (the value ``fill``) or "nearest" (the border pixel). A NaN coordinate reads row or column 0, or ``fill``.
        fill: the value outside with "zeros"; one number or one for each input, such as ``(0.0, -100)`` for labels that
            a loss should ignore.

    Returns:
        (N, C, h, w), contiguous, in the dtype of the input; a tuple when a tuple (or list) came in. Integers between pixels are
        rounded, halves up, and held within the range of their dtype, as ``scipy.ndimage`` does. Sums are made in
        float64 where an input of the call is float64, else in float32, and so are the coordinates (relative to a
        nearby pixel: fine in large images too). Gradients reach floating inputs, any number of times. On the CPU
        their sums have one order, whatever the number of threads; on a GPU it differs from run to run, and with it the
        last bits, unless ``torch.use_deterministic_algorithms`` is on: the sums are then exact multiples of about
        2^-40 of the largest gradient of a channel, or NaN where a gradient is not finite.

    Raises:
        InputError: shapes, batch sizes, devices or numbers of entries do not match, an unknown name, empty images,
            integers without a named interpolation, or with one that would blend labels, or a displacement or matrix that
            requires gradients.
        InputTypeError: not tensors, or a dtype that is not in the lists above.

    Source: Ronneberger, Fischer, Brox, U-Net (MICCAI 2015), section 3.1: 3 x 3 points, std 10 px, bicubic.

    Equivalent to (for field="bicubic", padding="mirror", no matrix)::

        u = F.interpolate(displacement, (H, W), mode="bicubic", align_corners=True)
        y, x = torch.arange(H)[:, None] + u[:, 0], torch.arange(W) + u[:, 1]
        grid = torch.stack([x * 2 / (W - 1) - 1, y * 2 / (H - 1) - 1], dim=-1)
        F.grid_sample(inputs, grid, interpolation, padding_mode="reflection", align_corners=True)
    """
    images = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    if not isinstance(images, (tuple, list)):
        raise InputTypeError(f"inputs is a {type(inputs).__name__}, expected a torch.Tensor or a tuple of them")
    kind = arguments.position("field", field, arguments.FIELDS)
    outside = arguments.position("padding", padding, arguments.PADDINGS)
    named, fills = arguments.interpolations(interpolation, len(images)), arguments.fills(fill, len(images))
    kinds = _check(images, displacement, matrix, kind, named, fills)
    sizes = arguments.output_sizes(output_size, len(images), (images[0].shape[2], images[0].shape[3]))
    if _backends.choose("elastic_warp", images[0].device.type) == "reference":
        return reference.elastic_warp(
            inputs,
            displacement,
            matrix=matrix,
            output_size=output_size,
            interpolation=[arguments.INTERPOLATIONS[one] for one in kinds],
            field=field,
            padding=padding,
            fill=fill,
        )
    outputs = torch.ops.unet_fast.elastic_warp(
        list(images),
        _parameter(displacement),
        None if matrix is None else _parameter(matrix),
        [side for size in sizes for side in size],
        kinds,
        fills,
        kind,
        outside,
    )
    return outputs[0] if isinstance(inputs, torch.Tensor) else tuple(outputs)


def _parameter(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _check(
    images: Sequence[torch.Tensor],
    displacement: torch.Tensor,
    matrix: torch.Tensor | None,
    field: int,
    named: list[int | None],
    fills: list[float],
) -> list[int]:
    """Check everything that is a tensor or belongs to one; returns the interpolations."""
    kinds = []
    for i, image in enumerate(images):
        name = f"inputs[{i}]"
        checks.check_tensor(name, image)
        checks.check_dtype(name, image, _DTYPES)
        checks.check_same_device("inputs[0]", images[0], name, image)
        dtype, floating = str(image.dtype).removeprefix("torch."), image.dtype.is_floating_point
        kinds.append(arguments.chosen_interpolation(i, dtype, floating, named[i]))
        if not floating:
            low, high = (0, 1) if image.dtype == torch.bool else _range(image.dtype)
            arguments.check_integer_fill(i, dtype, fills[i], low, high)
    parameters = {"displacement": displacement} if matrix is None else {"displacement": displacement, "matrix": matrix}
    for name, tensor in parameters.items():
        checks.check_tensor(name, tensor)
        checks.check_dtype(name, tensor, checks.FLOATING)
        if images:
            checks.check_same_device("inputs[0]", images[0], name, tensor)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{name} requires gradients, but elastic_warp computes them for its inputs only; pass {name}.detach(), or use "
                "unet_fast.reference.elastic_warp"
            )
    arguments.check_shapes(
        [tuple(image.shape) for image in images],
        tuple(displacement.shape),
        None if matrix is None else tuple(matrix.shape),
        field,
    )
    return kinds


def _range(dtype: torch.dtype) -> tuple[int, int]:
    limits = torch.iinfo(dtype)
    return limits.min, limits.max


def _fake(
    inputs: list[torch.Tensor],
    displacement: torch.Tensor,
    matrix: torch.Tensor | None,
    output_size: list[int],
    *options: Any,
) -> list[torch.Tensor]:
    return [
        image.new_empty((*image.shape[:2], output_size[2 * i], output_size[2 * i + 1]))
        for i, image in enumerate(inputs)
    ]


def _fake_backward(
    grads: list[torch.Tensor],
    displacement: torch.Tensor,
    matrix: torch.Tensor | None,
    input_size: list[int],
    interpolation: list[int],
    field: int,
    padding: int,
    deterministic: bool,
) -> list[torch.Tensor]:
    return [grad.new_empty((*grad.shape[:2], *input_size)) for grad in grads]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    images, displacement, matrix, _, ctx.interpolation, _, ctx.field, ctx.padding = inputs
    ctx.save_for_backward(displacement, matrix)
    ctx.dtypes = [image.dtype for image in images]
    ctx.input_size = list(images[0].shape[2:])


def _backward(ctx: Any, grads: list[torch.Tensor | None]) -> tuple[Any, ...]:
    displacement, matrix = ctx.saved_tensors
    # coordinates and sums in the type that the forward pass used for the whole call
    wide = _tensors.wide(torch.float64 if torch.float64 in ctx.dtypes else ctx.dtypes[0])
    wanted = [
        (i, grad.to(wide))
        for i, (grad, need) in enumerate(zip(grads, ctx.needs_input_grad[0], strict=True))
        if need and grad is not None
    ]
    result: list[torch.Tensor | None] = [None] * len(grads)
    if wanted:
        computed = torch.ops.unet_fast.elastic_warp_backward(
            [grad for _, grad in wanted],
            displacement,
            matrix,
            ctx.input_size,
            [ctx.interpolation[i] for i, _ in wanted],
            ctx.field,
            ctx.padding,
            torch.are_deterministic_algorithms_enabled(),
        )
        for (i, _), grad in zip(wanted, computed, strict=True):
            result[i] = grad.to(ctx.dtypes[i])
    return (result, *[None] * 7)


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    grads, displacement, matrix, _, ctx.interpolation, ctx.field, ctx.padding, _ = inputs
    ctx.save_for_backward(displacement, matrix)
    ctx.output_size = [side for grad in grads for side in grad.shape[2:]]


def _double_backward(ctx: Any, grads: list[torch.Tensor]) -> tuple[Any, ...]:
    # the backward is linear: its transpose is the warp itself, with nothing outside
    displacement, matrix = ctx.saved_tensors
    warped = torch.ops.unet_fast.elastic_warp(
        grads,
        displacement,
        matrix,
        ctx.output_size,
        ctx.interpolation,
        [0.0] * len(grads),
        ctx.field,
        ctx.padding,
    )
    return (list(warped), *[None] * 7)


_record.register(
    _record.Op(
        elastic_warp,
        (
            _record.Operator(
                "elastic_warp(Tensor[] inputs, Tensor displacement, Tensor? matrix, SymInt[] output_size, "
                "int[] interpolation, float[] fill, int field, int padding) -> Tensor[]",
                _fake,
                _backward,
                _setup_context,
            ),
            _record.Operator(
                "elastic_warp_backward(Tensor[] grads, Tensor displacement, Tensor? matrix, SymInt[] "
                "input_size, int[] interpolation, int field, int padding, bool deterministic) -> Tensor[]",
                _fake_backward,
                _double_backward,
                _setup_context_backward,
            ),
        ),
        sample=lambda d, n, h, w: (d.image(n, 2, h, w), d.labels(n, 1, h, w), d.wide(n, 2, 3, 3)),
        arguments=lambda image, labels, displacement: (
            ((image, labels), displacement),
            {"interpolation": ("bicubic", "nearest")},
        ),
        tolerance=LARGE_WARP,
        leaves=(0,),
        gradient=WARP_GRADIENT,
        second=True,
    )
)
