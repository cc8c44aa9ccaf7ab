"""elastic_warp against torch's interpolate and grid_sample, SciPy and elasticdeform; and its own properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from tests.places import needs
from tests.tolerances import EXACT, WARP
from unet_fast import reference
from unet_fast.ops import elastic_warp, use_backend

pytestmark = [pytest.mark.kernels, needs("speed")]  # smaller ones: test_kernels_warp.py

FIELDS = ["bicubic", "bspline", "bspline_smooth"]
INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]
PADDINGS = ["mirror", "zeros", "nearest"]
SCIPY_MODE = {"mirror": "mirror", "zeros": "constant", "nearest": "nearest"}
GRID_SAMPLE_MODE = {"mirror": "reflection", "zeros": "zeros", "nearest": "border"}


def draw(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(rng.random(shape)).to(dtype)


def draw_labels(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 100, shape)).to(dtype)


def draw_field(rng: np.random.Generator, n: int, gh: int, gw: int, sigma: float = 8.0) -> torch.Tensor:
    return torch.from_numpy(rng.normal(0, sigma, (n, 2, gh, gw)))


def draw_matrix(rng: np.random.Generator, n: int) -> torch.Tensor:
    """A rotation, scaled and sheared a little, and a shift."""
    angle = rng.uniform(-np.pi, np.pi, n)
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(n, 2, 2)
    linear = rotation + rng.normal(0, 0.1, (n, 2, 2))
    return torch.from_numpy(np.concatenate([linear, rng.normal(0, 5, (n, 2, 1))], axis=2))


def dense_field(displacement: torch.Tensor, field: str, height: int, width: int) -> np.ndarray:
    """The field of every pixel, by SciPy (B-splines) or torch (bicubic)."""
    if field == "bicubic":
        return F.interpolate(displacement, (height, width), mode="bicubic", align_corners=True).numpy()
    gh, gw = displacement.shape[2:]
    first, last = (1, 2) if field == "bspline_smooth" else (0, 1)
    y = np.linspace(first, gh - last, height) if height > 1 else np.array([float(first)])
    x = np.linspace(first, gw - last, width) if width > 1 else np.array([float(first)])
    at = np.meshgrid(y, x, indexing="ij")
    return np.stack(
        [
            [
                ndimage.map_coordinates(plane, at, order=3, mode="mirror", prefilter=field == "bspline")
                for plane in sample
            ]
            for sample in displacement.numpy()
        ]
    )


def source(displacement: torch.Tensor, matrix: torch.Tensor | None, field: str, height: int, width: int) -> np.ndarray:
    """(N, 2, H, W): where each pixel reads, written down anew from the docstring."""
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    pixel = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(float)
    relative = pixel[None] - centre[:, None, None] + dense_field(displacement, field, height, width)
    if matrix is not None:
        m = matrix.numpy()
        relative = np.einsum("nij,njyx->niyx", m[:, :, :2], relative) + m[:, :, 2, None, None]
    return relative + centre[:, None, None]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("field", FIELDS)
def test_scipy_map_coordinates(field, padding, place, rng):
    for height, width, grid in ((37, 70, (3, 3)), (70, 129, (4, 6)), (9, 5, (1, 2)), (2, 66, (5, 9))):
        if field == "bspline_smooth":
            grid = (max(grid[0], 4), max(grid[1], 4))
        image, labels = draw(rng, 2, 2, height, width), draw_labels(rng, 2, 1, height, width)
        displacement, matrix = draw_field(rng, 2, *grid), draw_matrix(rng, 2)
        for m in (None, matrix):
            at = source(displacement, m, field, height, width)
            results = elastic_warp(
                (image.to(place), labels.to(place)),
                displacement.to(place),
                matrix=None if m is None else m.to(place),
                interpolation=("bilinear", "nearest"),
                field=field,
                padding=padding,
                fill=(0.25, 7),
            )
            warped, warped_labels = (result.cpu() for result in results)
            for n in range(2):
                if padding == "zeros":  # SciPy's "constant" fades to the fill value within one pixel, as here
                    inside = np.all((at[n] >= 0) & (at[n].T <= np.array([width - 1, height - 1]).T[::-1]).T, axis=0)
                    expected = ndimage.map_coordinates(image[n, 1].numpy(), at[n], order=1)
                    np.testing.assert_allclose(warped[n, 1].numpy()[inside], expected[inside], **WARP[torch.float64])
                    far = np.any((at[n] < -1) | (at[n] > np.array([height, width])[:, None, None]), axis=0)
                    assert np.allclose(warped[n].numpy()[:, far], 0.25, atol=1e-15)
                    assert np.all(warped_labels[n, 0].numpy()[far] == 7)
                    continue
                for c in range(2):
                    expected = ndimage.map_coordinates(image[n, c].numpy(), at[n], order=1, mode=SCIPY_MODE[padding])
                    np.testing.assert_allclose(warped[n, c].numpy(), expected, **WARP[torch.float64])
                expected = ndimage.map_coordinates(
                    labels[n, 0].numpy(), np.floor(at[n] + 0.5), order=0, mode=SCIPY_MODE[padding]
                )
                assert np.mean(warped_labels[n, 0].numpy() != expected) == 0


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_torch_interpolate_and_grid_sample(interpolation, padding, rng):
    for height, width, grid in ((40, 67, (3, 3)), (130, 64, (2, 5)), (3, 200, (1, 3))):
        image, displacement = draw(rng, 2, 3, height, width), draw_field(rng, 2, *grid)
        at = source(displacement, None, "bicubic", height, width)
        scaled = [torch.from_numpy(at[:, 1]) * 2 / (width - 1) - 1, torch.from_numpy(at[:, 0]) * 2 / (height - 1) - 1]
        expected = F.grid_sample(
            image,
            torch.stack(scaled, -1),
            interpolation,
            GRID_SAMPLE_MODE[padding],
            align_corners=True,
        )
        out = elastic_warp(image, displacement, interpolation=interpolation, padding=padding)
        torch.testing.assert_close(out, expected, **WARP[torch.float64])


@needs("large")
def test_elasticdeform(rng):
    elasticdeform = pytest.importorskip("elasticdeform")
    image, labels = draw(rng, 2, 3, 61, 83), draw_labels(rng, 2, 1, 61, 83, dtype=torch.int32)
    displacement = draw_field(rng, 2, 3, 5, sigma=10)
    out, out_labels = elastic_warp(
        (image, labels), displacement, interpolation=("bilinear", "nearest"), field="bspline"
    )
    for n in range(2):
        expected, expected_labels = elasticdeform.deform_grid(
            [image[n].numpy(), labels[n].numpy()],
            displacement[n].numpy(),
            order=[1, 0],
            mode="mirror",
            axis=[(1, 2), (1, 2)],
        )
        np.testing.assert_allclose(out[n].numpy(), expected, **WARP[torch.float64])
        np.testing.assert_array_equal(out_labels[n].numpy(), expected_labels)


def part_of_a_larger(image):
    """The same pixels, as a slice along every axis of a larger tensor."""
    n, c, height, width = image.shape
    base = torch.zeros(n + 2, c + 2, height + 10, width + 19, dtype=image.dtype)
    base[1 : n + 1, 1 : c + 1, 4 : height + 4, 7 : width + 7] = image
    return base[1 : n + 1, 1 : c + 1, 4 : height + 4, 7 : width + 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_floating_dtype_and_layout(dtype, interpolation, rng):
    image = draw(rng, 2, 3, 50, 141, dtype=dtype)
    displacement, matrix = draw_field(rng, 2, 4, 4).float(), draw_matrix(rng, 2).float()
    for padding in PADDINGS:
        options = {"matrix": matrix, "interpolation": interpolation, "padding": padding, "fill": 0.5}
        expected = reference.elastic_warp(image.double(), displacement, **options)
        out = elastic_warp(image, displacement, **options)
        assert out.dtype == dtype and out.is_contiguous()
        wrong = ((out.double() - expected).abs() > WARP[dtype]["atol"]).double().mean()
        # float32 coordinates may round a tie between two pixels the other way
        assert wrong <= (1e-3 if interpolation == "nearest" else 0)
        for same in (
            image.to(memory_format=torch.channels_last),
            part_of_a_larger(image),
            image.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            again = elastic_warp(same, displacement, **options)
            if interpolation == "nearest":
                torch.testing.assert_close(again, out, **EXACT)
            else:
                torch.testing.assert_close(again, out, **WARP[dtype])


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float64]
)
def test_labels_keep_dtype_and_values(dtype, rng):
    labels = draw_labels(rng, 2, 2, 45, 90).to(dtype)
    displacement, matrix = draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)
    for padding in PADDINGS:
        fill = 1 if dtype == torch.bool else 100
        options = {"matrix": matrix, "interpolation": "nearest", "padding": padding, "fill": fill}
        expected = reference.elastic_warp(labels, displacement, **options)
        for image in (labels, labels.to(memory_format=torch.channels_last)):
            # a float64 companion makes the coordinates float64: the same pixel everywhere
            out, _ = elastic_warp((image, draw(rng, 2, 1, 45, 90)), displacement, **{**options, "fill": (fill, 0.0)})
            assert out.dtype == dtype
            torch.testing.assert_close(out, expected, **EXACT)
            alone = elastic_warp(image, displacement, **options)
            assert (alone != expected).double().mean() < 1e-3


WHOLE = [torch.uint8, torch.int8, torch.uint16, torch.int16]


def draw_whole(rng: np.random.Generator, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers from the whole range of the dtype."""
    limits = torch.iinfo(dtype)
    return torch.from_numpy(rng.integers(limits.min, limits.max + 1, shape)).to(dtype)


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_are_interpolated_as_scipy_does(dtype, rng):
    """Rounded to the nearest whole number; halves, of which a float64 coordinate meets hardly any, apart."""
    for padding in PADDINGS:
        image, displacement = draw_whole(rng, 1, 1, 41, 83, dtype=dtype), draw_field(rng, 1, 3, 3)
        companion = draw(rng, 1, 1, 41, 83)  # makes the coordinates float64
        options = {"interpolation": "bilinear", "padding": padding, "fill": (3.0, 0.0)}
        out, _ = elastic_warp((image, companion), displacement, **options)
        assert out.dtype == dtype
        at = source(displacement, None, "bicubic", 41, 83)[0]
        truth = ndimage.map_coordinates(image.numpy()[0, 0], at, order=1, mode=SCIPY_MODE[padding], cval=3)
        inside = np.ones(at[0].shape, bool)
        if padding == "zeros":  # SciPy's "constant" does not interpolate between the image and what lies outside
            inside = (at[0] >= 0) & (at[0] <= 40) & (at[1] >= 0) & (at[1] <= 82)
        np.testing.assert_array_equal(out.numpy()[0, 0][inside], truth[inside])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_equal_the_reference_in_every_layout(dtype, interpolation, rng):
    """In float32, where a sum of 16 bits has 8 bits left: at most one apart, and seldom."""
    image = draw_whole(rng, 2, 3, 50, 141, dtype=dtype)
    displacement, matrix = draw_field(rng, 2, 4, 4).float(), draw_matrix(rng, 2).float()
    slope = 2.0 * float(torch.iinfo(dtype).max)
    for padding in PADDINGS:
        options = {"matrix": matrix, "interpolation": interpolation, "padding": padding, "fill": 5}
        expected = reference.elastic_warp(image, displacement, **options).long()
        for same in (image, image.to(memory_format=torch.channels_last), part_of_a_larger(image)):
            out = elastic_warp(same, displacement, **options)
            assert out.dtype == dtype and out.is_contiguous()
            apart = (out.long() - expected).abs()
            assert apart.max() <= max(1.0, 3 * slope * WARP[torch.float32]["atol"])
            if dtype in (torch.uint8, torch.int8):
                assert (apart > 0).double().mean() < 0.01


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_at_the_end_of_memory(dtype, rng):
    for height, width in ((1, 1), (1, 2), (1, 3), (2, 2), (3, 5), (7, 64), (33, 70)):
        image = draw_whole(rng, 1, 2, height, width, dtype=dtype)
        for interpolation in ("bilinear", "bicubic"):
            out = elastic_warp(image, torch.zeros(1, 2, 3, 3), interpolation=interpolation)
            assert torch.equal(out.long(), image.long())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
def test_the_last_bytes_of_memory_are_read_right(dtype, rng):
    """Small pixels are read four bytes at a time, which must not go past the end."""
    for height, width in ((1, 1), (1, 2), (1, 3), (2, 2), (3, 5), (7, 64)):
        labels = draw_labels(rng, 1, 1, height, width).to(dtype)
        out = elastic_warp(labels, torch.zeros(1, 2, 3, 3), interpolation="nearest")
        torch.testing.assert_close(out, labels, **EXACT)


def test_zero_field_is_the_identity(rng):
    for height, width in ((64, 64), (1, 1), (1, 70), (33, 1), (57, 131)):
        for interpolation in INTERPOLATIONS:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                image = draw(rng, 2, 2, height, width, dtype=dtype)
                zero = torch.zeros(2, 2, 3, 3)
                torch.testing.assert_close(elastic_warp(image, zero, interpolation=interpolation), image, **EXACT)


def test_whole_pixel_shift_equals_slicing(rng):
    image = draw(rng, 2, 1, 40, 90, dtype=torch.float32)
    matrix = torch.tensor([[1.0, 0, 3], [0, 1, -5]]).expand(2, 2, 3)
    out = elastic_warp(image, torch.zeros(2, 2, 3, 3), matrix=matrix)
    torch.testing.assert_close(out[:, :, :-3, 5:], image[:, :, 3:, :-5], **EXACT)
    constant = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1).expand(2, 2, 1, 1)
    torch.testing.assert_close(elastic_warp(image, constant), out, **EXACT)


def test_matrix_is_applied_before_the_field(rng):
    """Warping twice, matrix first, equals warping once with both, where nothing left the image."""
    y, x = torch.meshgrid(torch.arange(80.0), torch.arange(100.0), indexing="ij")
    ramp = torch.stack([y, x])[None].double()
    displacement, matrix = draw_field(rng, 1, 3, 3, sigma=3), draw_matrix(rng, 1)
    matrix[:, :, :2] *= 0.5
    zero = torch.zeros_like(displacement)
    twice = elastic_warp(elastic_warp(ramp, zero, matrix=matrix), displacement)
    once = elastic_warp(ramp, displacement, matrix=matrix)
    inner = (slice(None), slice(None), slice(20, 60), slice(20, 80))
    torch.testing.assert_close(once[inner], twice[inner], **WARP[torch.float64])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_crop_of_the_warp_is_the_warp_of_the_crop(dtype, interpolation, padding, rng):
    height, width = 75, 150
    image, labels = draw(rng, 2, 2, height, width, dtype=dtype), draw_labels(rng, 2, 1, height, width)
    displacement, matrix = draw_field(rng, 2, 3, 3), draw_matrix(rng, 2)
    options = {"matrix": matrix, "interpolation": (interpolation, "nearest"), "padding": padding}
    larger = elastic_warp((image, labels), displacement, output_size=(90, 171), **options)
    for size in ((75, 150), (40, 77), (1, 1), (74, 3), (90, 171)):
        cropped = elastic_warp((image, labels), displacement, output_size=(size, (13, 20)), **options)
        for out, full, (h, w) in zip(cropped, larger, (size, (13, 20)), strict=True):
            y, x = (75 - h) // 2 - (75 - 90) // 2, (150 - w) // 2 - (150 - 171) // 2
            torch.testing.assert_close(out, full[:, :, y : y + h, x : x + w], **EXACT)


@needs("threads")
def test_threads_do_not_change_the_result(rng):
    image = draw(rng, 3, 2, 130, 150, dtype=torch.float32).requires_grad_()
    displacement, matrix = draw_field(rng, 3, 3, 3), draw_matrix(rng, 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = elastic_warp(image, displacement, matrix=matrix)
            results.append((out, *torch.autograd.grad(out.square().sum(), image)))
    finally:
        torch.set_num_threads(before)
    for out, grad in results[1:]:
        torch.testing.assert_close(out, results[0][0], **EXACT)
        torch.testing.assert_close(grad, results[0][1], **EXACT)


@pytest.mark.parametrize("padding", PADDINGS)
def test_coordinates_that_are_nowhere(padding, rng):
    image, labels = draw(rng, 1, 1, 6, 70, dtype=torch.float32), draw_labels(rng, 1, 1, 6, 70)
    for value in (float("nan"), float("inf"), -float("inf"), 1e30, -3e9, 1e6):
        displacement = torch.full((1, 2, 1, 1), value)
        options = {"interpolation": ("bilinear", "nearest"), "padding": padding, "fill": (0.5, 101)}
        out, out_labels = elastic_warp((image, labels), displacement, **options)
        if padding == "zeros":
            assert torch.all(out == 0.5) and torch.all(out_labels == 101)
        else:
            assert torch.all((out >= 0) & (out < 1)) and torch.all((out_labels >= 0) & (out_labels < 100))
        if padding == "nearest" and 0 < value < float("inf"):  # 0 * infinity is a NaN
            torch.testing.assert_close(out, image[:, :, -1:, -1:].expand_as(out), **EXACT)


def test_far_reflections_repeat(rng):
    image = draw(rng, 1, 1, 5, 7)
    padded = np.pad(image[0, 0].numpy(), ((100, 100), (90, 90)), mode="reflect")
    out = elastic_warp(image, torch.zeros(1, 2, 3, 3), output_size=(205, 187))
    np.testing.assert_array_equal(out[0, 0].numpy(), padded)


def test_large_frames_keep_their_precision(rng):
    """2^24 + 3 columns: float32 cannot count them."""
    width = 2**24 + 3
    image = torch.arange(width, dtype=torch.int32).view(1, 1, 1, width)
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, width // 2 - 50.0]]], dtype=torch.float64)
    out = elastic_warp(image, torch.zeros(1, 2, 3, 3), matrix=matrix, output_size=(1, 60), interpolation="nearest")
    start = (width - 60) // 2 + width // 2 - 50
    assert out[0, 0, 0].tolist() == [min(i, 2 * (width - 1) - i) for i in range(start, start + 60)]


def test_reference_backend(rng):
    image, labels = draw(rng, 2, 1, 20, 30), draw_labels(rng, 2, 1, 20, 30)
    displacement = draw_field(rng, 2, 3, 3)
    options = {"interpolation": ("bicubic", "nearest"), "output_size": 12, "padding": "zeros", "fill": (1.0, 2)}
    with use_backend("reference"):
        truth = elastic_warp((image, labels), displacement, **options)
    with use_backend("cpp"):
        out = elastic_warp((image, labels), displacement, **options)
    torch.testing.assert_close(out[0], truth[0], **WARP[torch.float64])
    torch.testing.assert_close(out[1], truth[1], **EXACT)
