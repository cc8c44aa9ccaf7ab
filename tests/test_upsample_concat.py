"""upsample_concat and crop_concat with their orders and paddings, against F.interpolate, F.pad and torch.cat in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unet_fast as uf
from tests.fuzz.drawing import lay_out
from tests.places import has, needs
from tests.tolerances import BY_DTYPE, EXACT
from unet_fast.errors import InputError, InputTypeError
from unet_fast.ops import crop_concat, upsample_concat, use_backend

pytestmark = pytest.mark.kernels

MODES = ("nearest", "bilinear", "aligned")
ORDERS, PADDINGS = ("skip_first", "up_first"), (None, "zeros", "replicate")


def plain(skip: Tensor, x: Tensor, mode: str, order: str, padding: str | None) -> Tensor:
    """What networks write."""
    if mode == "nearest":
        up = F.interpolate(x, scale_factor=2, mode="nearest")
    elif mode != "none":
        up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=mode == "aligned")
    else:
        up = x
    high, wide = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
    if padding is None:
        skip = skip[:, :, high // 2 : high // 2 + up.shape[2], wide // 2 : wide // 2 + up.shape[3]]
    else:
        pad = [wide // 2, wide - wide // 2, high // 2, high - high // 2]
        up = F.pad(up, pad, mode="constant" if padding == "zeros" else "replicate")
    return torch.cat([up, skip] if order == "up_first" else [skip, up], 1)


def ours(skip: Tensor, x: Tensor, mode: str, order: str, padding: str | None) -> Tensor:
    if mode == "none":
        return crop_concat(skip, x, order=order, padding=padding)
    align = mode == "aligned"
    return upsample_concat(
        skip, x, mode="bilinear" if align else mode, align_corners=align, order=order, padding=padding
    )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_agrees_with_plain_torch(mode, order, padding, place, generator):
    """Odd sizes, one pixel, many channels, gaps; every layout and dtype; gradients too."""
    shapes = [((5, 7), 3, 2), ((1, 1), 1, 1), ((4, 9), 16, 24), ((6, 1), 2, 5)]
    dtypes = itertools.cycle([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32])
    chosen = 5 * ORDERS.index(order) + 3 * len(mode) + 6 * PADDINGS.index(padding)
    cases = list(itertools.product(shapes, ["dense", "channels_last", "slice", "channels_last_slice"]))
    # where a launch takes long, one shape and layout for each mode, order and padding
    for ((h, w), c1, c2), layout in cases if has("speed") else [cases[chosen % 16]]:
        dtype, factor = next(dtypes), 1 if mode == "none" else 2
        more = [int(torch.randint(0, 4, (), generator=generator)) for _ in range(2)]
        sizes = ((2, c1, factor * h + more[0], factor * w + more[1]), (2, c2, h, w))
        exact = [torch.randn(size, generator=generator).to(dtype).double().requires_grad_() for size in sizes]
        leaves = [lay_out(tensor.detach().to(dtype), layout).to(place).requires_grad_() for tensor in exact]
        truth, out = plain(*exact, mode, order, padding), ours(*leaves, mode, order, padding)
        assert out.dtype == dtype
        tolerance = BY_DTYPE[dtype] if mode in ("bilinear", "aligned") else EXACT
        torch.testing.assert_close(out.cpu().double(), truth, **tolerance)
        grad = torch.randn(truth.shape, generator=generator).to(dtype)
        got = torch.autograd.grad(out, leaves, lay_out(grad, layout).to(place))
        for mine, its in zip(got, torch.autograd.grad(truth, exact, grad.double()), strict=True):
            torch.testing.assert_close(
                mine.cpu().double(), its, rtol=BY_DTYPE[dtype]["rtol"], atol=4 * BY_DTYPE[dtype]["atol"]
            )


@needs("host")
@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_small_maps_are_left_to_torch_with_the_same_result(mode, generator):
    """Bit for bit where numbers are copied, in the same layout; but for integers, maps without pixels, and under autocast."""
    factor = 1 if mode == "none" else 2
    sizes = [
        ((2, 3, 8, 9), (2, 4, 3, 4)),
        ((1, 2, 4, 4), (1, 2, 2, 2)),
        ((1, 1, 2, 2), (1, 1, 1, 1)),
        ((1, 3, 2, 3), (1, 2, 1, 1)),
    ]
    sizes += [
        ((0, 2, 6, 6), (0, 2, 2, 2)),
        ((1, 2, 6, 6), (1, 0, 2, 2)),
        ((1, 1, 6, 6), (1, 3, 2, 2)),
        ((2, 2, 5, 5), (2, 2, 0, 0)),
    ]
    dtypes = itertools.cycle((torch.float32, torch.bfloat16, torch.float64, torch.float16))
    layouts = ("dense", "channels_last", "slice", "transposed", "channels_last_slice")
    faster = 0
    for (large, small), layout, order, padding in itertools.product(sizes, layouts, ORDERS, PADDINGS):
        if padding == "replicate" and 0 in small[2:]:
            continue
        dtype = next(dtypes)
        tensors = [lay_out(torch.randn(size, generator=generator).to(dtype), layout) for size in (large, small)]
        found = []
        for backend in ("auto", "cpp"):
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            with use_backend(backend):
                out = ours(*leaves, mode, order, padding)
            grad = torch.arange(out.numel(), dtype=dtype).view(out.shape) / 16
            found.append((out, *torch.autograd.grad(out, leaves, grad, allow_unused=True)))
            faster += backend == "auto" and out.grad_fn.name() == "CatBackward0"
        (mine, *grads), (its, *theirs) = found
        assert mine.stride() == its.stride() or 1 in mine.shape or mine.numel() == 0, (
            large,
            small,
            layout,
            order,
            padding,
        )
        close = EXACT if mode in ("nearest", "none") else BY_DTYPE[dtype]
        torch.testing.assert_close(mine, its, **close, check_stride=False)
        for a, b in zip(grads, theirs, strict=True):
            torch.testing.assert_close(
                a, b, rtol=BY_DTYPE[dtype]["rtol"], atol=16 * BY_DTYPE[dtype]["atol"], check_stride=False
            )
    assert faster > 50
    whole = (
        torch.ones(1, 2, 8, 8, dtype=torch.int64),
        torch.ones(1, 2, 8 // factor - 1, 8 // factor - 1, dtype=torch.int64),
    )
    if mode in ("nearest", "none"):
        assert ours(*whole, mode, "skip_first", "replicate").dtype == torch.int64
    with torch.autocast("cpu", torch.bfloat16):
        low = [tensor.bfloat16() for tensor in whole]
        assert ours(*low, mode, "skip_first", "replicate").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_are_copied(dtype, place, generator):
    skip = (torch.rand(1, 2, 9, 11, generator=generator) * 100).to(dtype)
    x = (torch.rand(1, 3, 4, 5, generator=generator) * 100).to(dtype)
    for padding in PADDINGS:
        got = upsample_concat(skip.to(place), x.to(place), padding=padding).cpu().double()
        torch.testing.assert_close(got, plain(skip.double(), x.double(), "nearest", "skip_first", padding), **EXACT)


def test_what_is_cut_off_or_padded_is_not_read(place):
    """NaN in the border of a skip and in the first pixel of x reach only what they belong to."""
    skip, x = torch.ones(1, 2, 9, 9), torch.ones(1, 2, 4, 4)
    skip[:, :, 8:], skip[:, :, :, 8:] = torch.nan, torch.nan
    assert upsample_concat(skip.to(place), x.to(place), mode="bilinear").isfinite().all()
    x[:, :, 0, 0] = torch.nan
    padded = upsample_concat(torch.ones(1, 2, 11, 11).to(place), x.to(place), mode="bilinear", padding="zeros").cpu()
    for edge in (padded[:, 2:, :1], padded[:, 2:, -2:], padded[..., :1][:, 2:], padded[..., -2:][:, 2:]):
        assert edge.eq(0).all()


@pytest.mark.parametrize("layout", ["dense", "channels_last"])
def test_empty_batches_and_sides_without_channels(layout, place):
    for n, c1, c2 in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        tensors = [
            lay_out(torch.ones(n, c, side, side), layout).to(place).requires_grad_() for c, side in ((c1, 9), (c2, 4))
        ]
        for padding in PADDINGS:
            out = upsample_concat(*tensors, padding=padding)
            assert (
                out.shape == (n, c1 + c2, *([8, 8] if padding is None else [9, 9]))
                and out.eq(1).sum() >= n * (c1 + c2) * 64
            )
            for grad, tensor in zip(torch.autograd.grad(out.sum(), tensors), tensors, strict=True):
                assert grad.shape == tensor.shape


@needs("host")
def test_the_layer_and_volumes(generator):
    layer = uf.nn.UpsampleConcat("bilinear", order="up_first", padding="zeros")
    skip, x = torch.randn(2, 3, 9, 8, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
    torch.testing.assert_close(layer(skip, x), plain(skip, x, "bilinear", "up_first", "zeros"))
    assert "mode='bilinear'" in repr(layer) and "padding='zeros'" in repr(layer)
    skip, up = torch.randn(1, 2, 5, 6, 7, generator=generator), torch.randn(1, 3, 4, 4, 4, generator=generator)
    expected = torch.cat([F.pad(up, [1, 2, 1, 1, 0, 1]), skip], 1)
    torch.testing.assert_close(uf.nn.CropConcat(order="up_first", padding="zeros")(skip, up), expected)


@needs("host")
@pytest.mark.parametrize(
    ("skip", "x", "options", "error", "message"),
    [
        (torch.zeros(1, 1, 8, 8).numpy(), torch.zeros(1, 1, 4, 4), {}, InputTypeError, "skip is a ndarray"),
        (torch.zeros(1, 8, 8), torch.zeros(1, 1, 4, 4), {}, InputError, "skip has 3 dimensions"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(2, 1, 4, 4), {}, InputError, "batch size 1 but x has 2"),
        (torch.zeros(1, 1, 8, 7), torch.zeros(1, 1, 4, 4), {}, InputError, r"\(8, 7\) is smaller than x of size \(4, 4\), up-sampled to \(8, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4).half(), {}, InputTypeError, "float32 but x has torch.float16"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), {"mode": "bicubic"}, InputError, "mode is 'bicubic', expected one of"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), {"order": "up"}, InputError, "order is 'up', expected one of"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), {"padding": "mirror"}, InputError, "padding is 'mirror', expected"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), {"align_corners": True}, InputError, "belongs to the mode 'bilinear'"),
        (torch.zeros(1, 1, 8, 8).int(), torch.zeros(1, 1, 4, 4).int(), {"mode": "bilinear"}, InputTypeError, "x has dtype int32"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 0, 4), {"padding": "replicate"}, InputError, "is empty, so a padding has nothing"),
    ],
)  # fmt: skip
def test_bad_input(skip, x, options, error, message):
    with pytest.raises(error, match=message):
        upsample_concat(skip, x, **options)
