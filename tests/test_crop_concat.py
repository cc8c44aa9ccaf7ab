"""crop_concat against torch.cat of slices: shapes, layouts, dtypes, gradients, registration, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.places import needs, opcheck
from tests.tolerances import EXACT
from unet_fast.errors import BackendError, InputError, InputTypeError
from unet_fast.ops import crop_concat, use_backend

pytestmark = [pytest.mark.kernels, pytest.mark.core]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def expected(skip: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """An independent truth: np.take of explicit index lists, then np.concatenate."""
    array = skip.detach().cpu().double().numpy()
    for axis in range(2, skip.dim()):
        start = (skip.shape[axis] - up.shape[axis]) // 2
        array = np.take(array, np.arange(start, start + up.shape[axis]), axis=axis)
    return torch.from_numpy(np.concatenate([array, up.detach().cpu().double().numpy()], axis=1))


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(shape, generator=generator) * 200).to(dtype)


SHAPES = [
    ((2, 3, 9, 12), (2, 2, 4, 7)),
    ((1, 1, 1, 1), (1, 1, 1, 1)),
    ((1, 64, 64, 64), (1, 64, 56, 56)),
    ((2, 5, 7, 7), (2, 1, 7, 7)),
    ((3, 1, 8, 5), (3, 4, 1, 1)),
    ((0, 2, 4, 4), (0, 2, 2, 2)),
    ((2, 0, 4, 4), (2, 2, 2, 2)),
    ((2, 3, 6, 9, 8), (2, 4, 3, 8, 5)),
    ((1, 16, 5, 5, 5), (1, 16, 5, 2, 5)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
def test_matches_concatenated_slices(shapes, channels_last, place, generator):
    skip, up = (draw(generator, *shape).to(place) for shape in shapes)
    if channels_last:
        form = torch.channels_last_3d if skip.dim() == 5 else torch.channels_last
        skip, up = skip.to(memory_format=form), up.to(memory_format=form)
    out = crop_concat(skip, up)
    torch.testing.assert_close(out.cpu().double(), expected(skip, up), **EXACT)
    if channels_last and skip.numel() and min(skip.shape[1], up.shape[1]) > 1 and up[0, 0].numel() > 1:
        assert out.is_contiguous(memory_format=form)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, place, generator):
    # sizes and crops that are multiples of 16 bytes, of one element, and something between
    for size, crop in ((9, 5), (32, 16), (24, 12)):
        skip = draw(generator, 2, 3, 9, size, dtype=dtype).to(place)
        up = draw(generator, 2, 5, 6, crop, dtype=dtype).to(place)
        out = crop_concat(skip, up)
        assert out.dtype == dtype
        torch.testing.assert_close(out.cpu().double(), expected(skip, up), **EXACT)


def test_slices_transposes_and_expanded_inputs(place, generator):
    base = draw(generator, 4, 8, 20, 22).to(place)
    up = draw(generator, 2, 3, 5, 6).to(place)
    for skip in (
        base[1:3, 2:6, 3:17, 5:20],
        base[::2, ::3],
        base[:2].transpose(2, 3),
        base[:1].expand(2, -1, -1, -1),
    ):
        torch.testing.assert_close(crop_concat(skip, up).cpu().double(), expected(skip, up), **EXACT)
    flipped = base[:2].permute(0, 1, 3, 2)
    torch.testing.assert_close(
        crop_concat(base[:2, :, :5, :6], up[:, :, :5]), crop_concat(base[:2, :, :5, :6].clone(), up)
    )
    torch.testing.assert_close(crop_concat(flipped, flipped), torch.cat([flipped, flipped], 1), **EXACT)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (4, 5), (4, 6, 5)])
@pytest.mark.parametrize("channels", [(0, 3), (3, 0), (0, 0), (17, 0)])
def test_a_side_without_channels(channels, size, channels_last, place, generator):
    """Forward and backward; as tensors of their own, which have no memory at all, and as empty slices of others."""
    form = (torch.channels_last_3d if len(size) == 3 else torch.channels_last) if channels_last else None
    crop = (4, 5) if len(size) == 2 else (3, 6, 2)
    for sliced in (False, True):
        skip, up = (
            draw(generator, 2, c + sliced, *s).to(place, memory_format=form or torch.contiguous_format)
            for c, s in zip(channels, (size, crop), strict=True)
        )
        leaves = [tensor[:, sliced:].detach().requires_grad_() for tensor in (skip, up)]
        out = crop_concat(*leaves)
        torch.testing.assert_close(out.cpu().double(), expected(*leaves), **EXACT)
        grad = draw(generator, *out.shape).to(place, memory_format=form or torch.contiguous_format)
        got = torch.autograd.grad(out, leaves, grad)
        start = [(full - part) // 2 for full, part in zip(size, crop, strict=True)]
        window = (..., *(slice(first, first + part) for first, part in zip(start, crop, strict=True)))
        want = torch.zeros_like(leaves[0])
        want[window] = grad[:, : channels[0]]
        torch.testing.assert_close(got, (want, grad[:, channels[0] :]), **EXACT, check_stride=False)


@needs("speed")
@pytest.mark.parametrize(
    ("dtype", "words"),
    [(torch.uint8, 1), (torch.int16, 2), (torch.float32, 4), (torch.float64, 8), (torch.complex128, 16)],
)
def test_every_word_width_and_more_words_than_threads(dtype, words, place, generator):
    """Odd rows allow only words of one element, and there are more of them than one for each thread."""
    skip = (torch.rand(1, 3, 515, 517, generator=generator) * 100).to(place, dtype)
    up = (torch.rand(1, 2, 513, 515, generator=generator) * 100).to(place, dtype)
    assert skip.element_size() == words
    out = crop_concat(skip, up)
    torch.testing.assert_close(out, torch.cat([skip[:, :, 1:514, 1:516], up], 1), **EXACT)
    padded = torch.zeros_like(skip)
    padded[:, :, 1:514, 1:516] = out[:, :3]
    torch.testing.assert_close(torch.ops.unet_fast.crop_concat_backward(out, 3, [515, 517]), padded, **EXACT)


@pytest.mark.parametrize("channels_last", [False, True])
def test_slices_that_start_in_the_middle_of_a_word(channels_last, place, generator):
    storage = torch.randn(1 + 2 * 3 * 8 * 8, generator=generator).to(place)
    part = storage[1:].view(2, 3, 8, 8)
    if channels_last:
        part = storage[1:].view(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert part.data_ptr() % 16
    torch.testing.assert_close(crop_concat(part, part), torch.cat([part, part], 1), **EXACT)


# (C1, side), (C2, side) of float32 maps whose join takes 16 MB and more: whole lines of the cache, 16 bytes, anything; contiguous rows
# and rows of a crop
LARGE = [
    ((32, 264), (32, 256)),
    ((12, 395), (20, 387)),
    ((30, 258), (35, 256)),
    ((16, 364), (16, 364)),
    ((1, 1500), (2, 1492)),
]


@needs("large")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("join", ["skip_first crop", "up_first crop", "skip_first replicate", "up_first zeros"])
@pytest.mark.parametrize(("skip_size", "up_size"), LARGE)
def test_large_maps_are_written_past_the_caches_whatever_the_rows(skip_size, up_size, join, channels_last):
    """With whole numbers that tell each place from its neighbours; the gradient of the skip too, from a slice of the joined one."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [(1, channels, side, side) for channels, side in (skip_size, up_size)]
    skip, up = (torch.arange(np.prod(s)).remainder(65521 + i).view(s).float() for i, s in enumerate(sizes))
    skip, up = (t.to(memory_format=form).requires_grad_() for t in (skip, up))
    order, padding = join.split()
    with use_backend("cpp"):
        out = crop_concat(skip, up, order=order, padding=None if padding == "crop" else padding)
    assert out.numel() * out.element_size() >= 1 << 24
    start, side = (skip_size[1] - up_size[1]) // 2, up_size[1]
    maps = [skip[:, :, start : start + side, start : start + side], up]
    if padding != "crop":
        mode = "constant" if padding == "zeros" else padding
        maps = [skip, torch.nn.functional.pad(up, [start, skip_size[1] - side - start] * 2, mode)]
    want = torch.cat(maps if order == "skip_first" else maps[::-1], 1)
    torch.testing.assert_close(out, want, **EXACT)
    grad = out.detach() + 1
    for mine, its in zip(
        torch.autograd.grad(out, (skip, up), grad), torch.autograd.grad(want, (skip, up), grad), strict=True
    ):
        torch.testing.assert_close(mine, its, **EXACT)


@needs("numeric")
@pytest.mark.parametrize("shapes", [((2, 3, 7, 6), (2, 2, 4, 3)), ((1, 2, 3, 4, 5), (1, 2, 2, 2, 2))])
def test_gradients_and_registration(shapes, generator):
    skip, up = (draw(generator, *s, dtype=torch.float64).requires_grad_() for s in shapes)
    with use_backend("cpp"):
        assert torch.autograd.gradcheck(crop_concat, (skip, up))
        assert torch.autograd.gradgradcheck(crop_concat, (skip, up))
    form = torch.channels_last_3d if skip.dim() == 5 else torch.channels_last
    for s, u in ((skip, up), (skip.to(memory_format=form), up.to(memory_format=form))):
        opcheck(torch.ops.unet_fast.crop_concat.default, (s.detach().requires_grad_(), u.detach()))
    grad = draw(generator, shapes[1][0], shapes[0][1] + shapes[1][1], *shapes[1][2:])
    opcheck(torch.ops.unet_fast.crop_concat_backward.default, (grad, shapes[0][1], list(shapes[0][2:])))


@needs("compiler")
def test_compiles_without_a_graph_break_for_changing_sizes(generator):
    compiled = torch.compile(
        lambda s, u: crop_concat(s, u * 2).relu(), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in ((9, 8), (6, 13)):
        skip, up = draw(generator, 2, 3, *size).requires_grad_(), draw(generator, 2, 2, 5, 4).requires_grad_()
        out = compiled(skip, up)
        torch.testing.assert_close(out.double(), expected(skip, up * 2), **EXACT)
        out.sum().backward()
        assert skip.grad.sum() == 2 * 3 * 20


@needs("host")
def test_autocast_widens_like_cat(generator):
    skip, up = draw(generator, 1, 2, 4, 4), draw(generator, 1, 2, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert crop_concat(skip, up).dtype == torch.cat([skip, up], 1).dtype


@needs("host")
def test_backends(generator):
    skip, up = draw(generator, 1, 2, 5, 5), draw(generator, 1, 2, 2, 2)
    with use_backend("reference"):
        truth = crop_concat(skip, up)
    with use_backend("cpp"):
        torch.testing.assert_close(crop_concat(skip, up), truth, **EXACT)
    with use_backend("cuda"), pytest.raises(BackendError, match="'cuda' was asked for"):
        crop_concat(skip, up)
    with pytest.raises(InputError, match="'tritn', expected one of auto, cpp"), use_backend("tritn"):
        pass


@needs("host")
@pytest.mark.parametrize(
    ("skip", "up", "error", "message"),
    [
        (
            np.zeros((1, 1, 4, 4)),
            torch.zeros(1, 1, 2, 2),
            InputTypeError,
            "skip is a ndarray, expected a torch.Tensor",
        ),
        (torch.zeros(1, 4, 4), torch.zeros(1, 2, 2), InputError, r"skip has 3 dimensions.*\(N, C, H, W\)"),
        (
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 2, 2, 2),
            InputError,
            "skip has 4 dimensions but up has 5",
        ),
        (torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 2, 2), InputError, "batch size 1 but up has 2"),
        (
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 2, 5),
            InputError,
            r"\(4, 4\) is smaller than up of size \(2, 5\)",
        ),
        (
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 2, 2).half(),
            InputTypeError,
            "float32 but up has torch.float16",
        ),
        (
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 2, 2, device="meta"),
            InputError,
            "on cpu but up is on meta",
        ),
    ],
)
def test_bad_input(skip, up, error, message):
    with pytest.raises(error, match=message):
        crop_concat(skip, up)
