"""The Augmenter: geometry read back from coordinate ramps, labels that never mix or drift, grey curves, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tolerances import EXACT, GREY_CURVE, RAMP
from unet_fast.augment import Augmentation, Augmenter, grey, parameters
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core

PLAIN = {"shift": False, "rotation": 0.0, "flips": False, "elastic_sigma": 0.0, "grey": False}


def ramps(n: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose two channels are y and x, which linear interpolation reproduces, and labels y * width + x."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([y, x]).double().expand(n, 2, height, width)
    return images, (y * width + x).to(torch.int32).expand(n, height, width)


def mirror(q: np.ndarray, size: int) -> np.ndarray:
    """Coordinates folded into an axis of pixels 0 .. size - 1, without repeating the border."""
    period = 2 * (size - 1)
    q = np.abs(q) % period
    return np.minimum(q, period - q)


@pytest.mark.parametrize("tile", [(4, 6), (7, 9), (12, 11), (40, 35)])
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
def test_without_randomness_it_is_the_mirrored_centre(size, tile, generator):
    images = torch.rand(2, 3, *size, generator=generator)
    labels = torch.randint(0, 9, (2, *size), generator=generator)
    out, classes = Augmenter(tile, **PLAIN)(images, labels, generator=generator)
    start = [(s - t) // 2 for s, t in zip(size, tile, strict=True)]
    rows, columns = (mirror(np.arange(t) + b, s) for s, t, b in zip(size, tile, start, strict=True))
    torch.testing.assert_close(out, images[:, :, rows][..., columns], **EXACT)
    torch.testing.assert_close(classes, labels[:, rows][..., columns], **EXACT)


@pytest.mark.parametrize("options", [{}, {"rotation": 0.0}, {"rotation": 30.0, "elastic_sigma": 0.0}, {"shift": False}])
@pytest.mark.parametrize(
    ("size", "tile", "output"), [((61, 80), 44, 20), ((40, 41), (70, 33), (30, 21)), ((9, 9), 5, 5)]
)
def test_labels_sit_on_the_pixels_of_the_image(size, tile, output, options, generator):
    """Wherever the image reads (y, x), the label is that of the nearest pixel: both come from one field."""
    augment = Augmenter(tile, output, grey=False, **({"elastic_sigma": 4.0} | options))
    images, labels = ramps(6, *size)
    out, got = augment(images, labels, generator=generator)
    assert out.shape == (6, 2, *augment.input_size) and got.shape == (6, *augment.output_size)
    assert out.dtype == torch.float64 and got.dtype == torch.int32
    margin = [(a - b) // 2 for a, b in zip(augment.input_size, augment.output_size, strict=True)]
    inner = out[:, :, margin[0] : margin[0] + got.shape[1], margin[1] : margin[1] + got.shape[2]]
    y, x = inner[:, 0], inner[:, 1]
    # ties, where rounding decides, and the border, at which a ramp is bent between two pixels, prove nothing
    clear = ((y % 1 - 0.5).abs() > 1e-6) & ((x % 1 - 0.5).abs() > 1e-6)
    expected = torch.floor(y + 0.5) * size[1] + torch.floor(x + 0.5)
    assert clear.float().mean() > 0.5
    assert (got[clear] == expected[clear]).all()


def test_the_matrix_is_a_uniform_rotation_with_flips_about_a_uniform_pixel(generator):
    """Angles, flips and centres as seen in the tiles themselves."""
    size, tile, n, rotation = (64, 96), 3, 2000, 40.0
    images, labels = ramps(n, *size)
    out, _ = Augmenter(tile, rotation=rotation, elastic_sigma=0, grey=False)(images, labels, generator=generator)
    centre = out[:, :, 1, 1]
    # the frame's centre lies between two pixels; the tile's, half a pixel from it, moves around it with the angle
    assert centre[:, 0].min() >= 0 and centre[:, 0].max() <= size[0] - 1
    inside = ((centre > 2) & (centre < torch.tensor(size)[:, None].T - 3)).all(1)
    down, right = (out[:, :, 2, 1] - out[:, :, 0, 1])[inside] / 2, (out[:, :, 1, 2] - out[:, :, 1, 0])[inside] / 2
    torch.testing.assert_close((down * right).sum(1), torch.zeros(len(down)).double(), **RAMP)
    for step in (down, right):
        torch.testing.assert_close(step.norm(dim=1), torch.ones(len(step)).double(), **RAMP)
    flip_y, flip_x = down[:, 0] < 0, right[:, 1] < 0
    for flip in (flip_y, flip_x, flip_y ^ flip_x):
        assert abs(flip.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(len(flip))
    angle = torch.rad2deg(torch.asin(torch.where(flip_y, -down[:, 1], down[:, 1])))
    assert angle.abs().max() <= rotation + 1e-3 and angle.abs().max() > 0.98 * rotation
    assert abs(angle.mean()) < 4 * rotation / math.sqrt(3 * len(angle))
    assert abs(angle.std() - rotation / math.sqrt(3)) < 1.5


def test_elastic_displacement_is_gaussian_with_this_deviation(generator):
    """With 3 x 3 control points the middle one is the displacement of the centre pixel."""
    images, labels = ramps(1500, 201, 151)
    augment = Augmenter(1, **(PLAIN | {"elastic_sigma": 7.0}))
    out, _ = augment(images, labels, generator=generator)
    shift = out[:, :, 0, 0] - torch.tensor([100.0, 75.0])
    assert (shift.mean(0).abs() < 4 * 7 / math.sqrt(1500)).all()
    assert (abs(shift.std(0) - 7) < 0.5).all()
    assert abs(torch.corrcoef(shift.T)[0, 1]) < 0.1
    centred, _ = Augmenter(1, **PLAIN)(images[:2], labels[:2], generator=generator)
    assert (centred[:, :, 0, 0] == torch.tensor([100.0, 75.0])).all()


@pytest.mark.parametrize(("tile", "draws"), [((5, 4), 40000), ((1, 1), 40000), ((23, 18), 4000)])
def test_every_pixel_is_equally_likely(tile, draws, generator):
    size = (9, 7)
    images, labels = ramps(1, *size)
    augment = Augmenter(tile, rotation=0, elastic_sigma=0, grey=False)
    _, got = augment.sample(images, labels, draws, generator=generator)
    counts = torch.bincount(got.flatten().long(), minlength=size[0] * size[1]).view(size).double()
    expected = torch.ones(size).double()  # the mirror does not repeat the outermost pixels
    for border in (expected[0], expected[-1], expected[:, 0], expected[:, -1]):
        border /= 2
    share = counts / got.numel() * expected.sum() / expected
    # pixels of one tile are not independent: the variance is at most that of whole tiles
    tolerance = 5 * math.sqrt(expected.sum() / draws / min(got[0].numel(), 4))
    assert (abs(share - 1) < tolerance).all()


def test_reproducible_by_the_generator_alone(generator):
    images, labels = (
        torch.rand(3, 2, 40, 50, generator=generator),
        torch.randint(0, 5, (3, 40, 50), generator=generator),
    )
    augment = Augmenter(28, 20)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(runs))  # torch's own generator plays no part
        g = torch.Generator().manual_seed(seed)
        runs.append([*augment(images, labels, generator=g), *augment.sample(images, labels, 4, generator=g)])
    for first, again, other in zip(*runs, strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)
    before = torch.random.get_rng_state()
    augment(images, labels, generator=generator)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    first = augment(images, labels)
    torch.manual_seed(1)
    assert torch.equal(first[0], augment(images, labels)[0])


def test_labels_of_16_bits_without_a_sign(generator):
    """Masks of many objects; torch itself compares them no more than it counts them."""
    labels = torch.randint(0, 60000, (2, 30, 33), generator=generator)
    images = torch.rand(2, 1, 30, 33, generator=generator)
    found = [
        Augmenter(44, 30)(images, as_given, generator=torch.Generator().manual_seed(0))[1]
        for as_given in (labels, labels.to(torch.uint16))
    ]
    assert found[1].dtype == torch.uint16
    torch.testing.assert_close(found[1].long(), found[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("padding", ["mirror", "nearest", "zeros"])
def test_label_values_never_mix(dtype, padding, generator):
    values = torch.tensor([1, 0] if dtype == torch.bool else [1, 7, 100]).to(dtype)
    labels = values[torch.randint(0, len(values), (4, 30, 33), generator=generator)]
    images = torch.rand(4, 1, 30, 33, generator=generator)
    _, got = Augmenter(44, 30, padding=padding)(images, labels, generator=generator)
    assert got.dtype == dtype
    allowed = set(values.tolist()) | ({0} if padding == "zeros" else set())
    assert set(got.unique().tolist()) <= allowed and len(got.unique()) > 1


def test_a_tuple_of_maps_shares_one_field(generator):
    images = torch.rand(3, 1, 50, 40, generator=generator)
    instances = (images[:, 0] * 1000).int()
    classes = (instances > 500).long()
    out, maps = Augmenter(30, 22, grey=False)(images, (classes, instances, images[:, 0]), generator=generator)
    assert isinstance(maps, tuple) and [m.dtype for m in maps] == [torch.int64, torch.int32, torch.float32]
    assert all(m.shape == (3, 22, 22) for m in maps)
    torch.testing.assert_close(maps[0], (maps[1] > 500).long(), **EXACT)
    torch.testing.assert_close(maps[2], out[:, 0, 4:-4, 4:-4], **EXACT)  # weights are interpolated as images are


def test_samples_come_from_all_images_with_equal_chances(generator):
    sources, draws = 7, 1400
    labels = torch.arange(sources).view(-1, 1, 1).expand(-1, 6, 5)
    out, (got, weights) = Augmenter(4, 2, grey=False).sample(
        labels.float().unsqueeze(1), (labels, labels.float()), draws, generator=generator
    )
    assert out.shape == (draws, 1, 4, 4) and got.shape == (draws, 2, 2)
    torch.testing.assert_close(out[:, 0, 1:3, 1:3], got.float())  # image and label of one sample are of one source
    torch.testing.assert_close(weights, got.float())
    counts = torch.bincount(got[:, 0, 0], minlength=sources)
    assert (abs(counts - draws / sources) < 5 * math.sqrt(draws / sources)).all()


def test_one_pixel_non_contiguous_and_empty_sources(generator):
    augment = Augmenter(5, 3)
    image, label = torch.full((2, 1, 1, 1), 3.5), torch.full((2, 1, 1), 9)
    out, got = augment(image, label, generator=generator)
    assert (out == 3.5).all() and (got == 9).all()
    images = torch.rand(2, 20, 24, 3, generator=generator).movedim(-1, 1)[:, :, 2:-1, 1:]
    labels = torch.randint(0, 4, (24, 20, 2), generator=generator).permute(2, 1, 0)[:, 2:-1, 1:]
    state = generator.get_state()
    strided = augment(images, labels, generator=generator)
    dense = augment(images.contiguous(), labels.contiguous(), generator=generator.set_state(state))
    torch.testing.assert_close(strided[0], dense[0])
    torch.testing.assert_close(strided[1], dense[1], **EXACT)
    out, got = augment(images[:0], labels[:0], generator=generator)
    assert out.shape == (0, 3, 5, 5) and got.shape == (0, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_grey_values_keep_dtype_order_and_labels(dtype, generator):
    images = torch.randn(2, 3, 30, 30, generator=generator).to(dtype) * 20 + 100
    labels = torch.randint(0, 9, (2, 30, 30), generator=generator)
    weights = torch.rand(2, 30, 30, generator=generator)
    options = PLAIN | {"rotation": 20.0}
    state = generator.get_state()
    before, maps = Augmenter(20, **options)(images, (labels, weights), generator=generator)
    generator.set_state(state)
    after, same = Augmenter(20, **(options | {"grey": True}))(images, (labels, weights), generator=generator)
    assert after.dtype == dtype and not torch.equal(before, after)
    assert torch.equal(maps[0], same[0]) and torch.equal(maps[1], same[1])
    for n in range(2):
        for c in range(3):
            old, new = before[n, c].double().flatten(), after[n, c].double().flatten()
            assert (new[old.argsort()].diff() >= 0).all()  # never reversed
            span = old.max() - old.min()
            assert (abs(new - old) <= 0.2 * span).all()


def test_grey_curves_are_what_they_promise(generator):
    tables = grey.draw_tables(500, 2, device=torch.device("cpu"), generator=generator)
    assert tables.shape == (500, 2, grey.ENTRIES)
    slopes = tables.diff(dim=-1) * (grey.ENTRIES - 1)
    assert slopes.min() >= 0.8 - 1e-4 and slopes.max() <= 1.2 + 1e-4 and slopes.min() < 0.85 and slopes.max() > 1.15
    black, white = tables[..., 0], tables[..., -1] - 1
    for end in (black, white):
        assert end.abs().max() <= 0.05 + 1e-6 and end.abs().max() > 0.048
        assert abs(end.std() - 0.1 / math.sqrt(12)) < 0.003
    assert abs(torch.corrcoef(torch.stack([tables[:, 0, 0], tables[:, 1, 0]]))[0, 1]) < 0.2  # a curve for each channel
    bend = tables.diff(dim=-1).diff(dim=-1).abs() * (grey.ENTRIES - 1)
    assert bend.max() < 0.05 and bend.mean() > 1e-4  # smooth, and yet not straight


def test_grey_tables_are_interpolated_linearly(generator):
    images = torch.randn(3, 2, 17, 23, generator=generator, dtype=torch.float64) * 5 + 2
    images[0, 0] = 4.25  # one value
    tables = grey.draw_tables(3, 2, device=torch.device("cpu"), generator=generator)
    low, high = grey.value_range(images)
    out = grey.apply_tables(images, tables, low, high)
    assert (out[0, 0] == 4.25).all()
    for n, c in [(0, 1), (1, 0), (2, 1)]:
        image, a, b = images[n, c].numpy(), low[n, c].item(), high[n, c].item()
        assert (a, b) == (image.min(), image.max())
        table = tables[n, c].double().numpy()
        expected = a + (b - a) * np.interp((image - a) / (b - a), np.linspace(0, 1, len(table)), table)
        np.testing.assert_allclose(out[n, c].numpy(), expected, **GREY_CURVE)


def test_random_numbers_never_wait_for_the_host():
    """On the meta device there are no values: whatever looked at one would raise."""
    meta = torch.device("meta")
    matrix = parameters.draw_matrix(4, (30, 40), Augmentation(rotation=90.0), device=meta, generator=None)
    displacement = parameters.draw_displacement(4, (3, 5), 10.0, device=meta, generator=None)
    assert matrix.shape == (4, 2, 3) and displacement.shape == (4, 2, 3, 5)
    images = torch.empty(4, 2, 20, 20, device=meta)
    tables = grey.draw_tables(4, 2, device=meta, generator=None)
    assert grey.apply_tables(images, tables, *grey.value_range(images)).shape == images.shape


def test_real_membranes_stay_dark(real_data, generator):
    """In electron micrographs membranes are dark: labels that drifted by a few pixels would lose that contrast."""
    from unet_fast import data

    pair = data.read_pair(real_data / "isbi2012/train-volume.tif", real_data / "isbi2012/train-labels.tif")
    images, cells = (
        torch.from_numpy(data.normalize(pair.images)),
        torch.from_numpy(data.to_classes(pair.labels, pair.kind)),
    )

    def contrast(image, label):
        return (image[label > 0].mean() - image[label == 0].mean()).item()

    before = contrast(images[:, 0], cells)
    out, got = Augmenter(284, 196).sample(images, cells, 32, generator=generator)
    after = contrast(out[:, 0, 44:-44, 44:-44], got)
    moved = contrast(out[:, 0, 50:-38, 50:-38], got)
    assert after > 0.85 * before and moved < 0.8 * before


IMAGES, LABELS = torch.zeros(2, 1, 8, 9), torch.zeros(2, 8, 9, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, InputError, "input_size is 0, expected at least 1"),
        ((-4, 2), {}, InputError, "input_size is -4"),
        ((8, 0), {}, InputError, "output_size is 0"),
        ((8.5,), {}, InputTypeError, "input_size is 8.5, expected an integer or two"),
        (((8, 8, 8),), {}, InputTypeError, r"input_size is \(8, 8, 8\)"),
        ((8, 9), {}, InputError, "at most the input size"),
        ((8, 5), {}, InputError, "an even difference"),
        ((8,), {"rotation": 181.0}, InputError, "rotation is 181.0, expected an angle from 0 to 180"),
        ((8,), {"rotation": math.nan}, InputError, "rotation is nan"),
        ((8,), {"elastic_sigma": -1.0}, InputError, "elastic_sigma is -1.0, expected a finite number"),
        ((8,), {"elastic_grid": (3, 0)}, InputError, r"elastic_grid is \(3, 0\), expected at least 1"),
        ((8,), {"field": "cubic"}, InputError, "field is 'cubic', expected one of 'bicubic', 'bspline'"),
        ((8,), {"field": "bspline_smooth"}, InputError, "needs at least 4 points"),
        ((8,), {"padding": "reflect"}, InputError, "padding is 'reflect', expected one of 'mirror'"),
    ],
)
def test_bad_options(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Augmenter(*arguments, **options)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES.numpy(), LABELS, InputTypeError, "images is a ndarray, expected a torch.Tensor"),
        (IMAGES, LABELS.numpy(), InputTypeError, "labels is a ndarray"),
        (IMAGES.int(), LABELS, InputTypeError, "images has dtype int32"),
        (IMAGES[0], LABELS, InputError, r"images has 3 dimensions, .*expected \(N, C, H, W\)"),
        (IMAGES, LABELS[0], InputError, r"labels has 2 dimensions, .*expected \(N, H, W\)"),
        (IMAGES, LABELS.float(), InputTypeError, "labels has dtype float32, expected one of uint8"),
        (IMAGES, (LABELS.float(), LABELS), InputTypeError, r"labels\[0\] has dtype float32"),
        (IMAGES, LABELS[:1], InputError, r"labels has shape \(1, 8, 9\), expected \(2, 8, 9\): one map for each"),
        (IMAGES, (LABELS, LABELS[:, :7]), InputError, r"labels\[1\] has shape \(2, 7, 9\)"),
        (IMAGES, LABELS.to("meta"), InputError, "images is on cpu but labels is on meta"),
        (IMAGES, (), InputError, "labels is empty"),
        (torch.full_like(IMAGES, torch.nan), LABELS, InputError, "images contains NaN"),
        (IMAGES[:, :, :0], LABELS[:, :0], InputError, r"shape \(2, 1, 0, 9\), expected at least one"),
    ],
)
@pytest.mark.parametrize("grey_values", [False, True])
def test_bad_images_and_labels(images, labels, error, message, grey_values, generator):
    augment = Augmenter(6, 4, grey=grey_values)
    with pytest.raises(error, match=message):
        augment(images, labels, generator=generator)
    with pytest.raises(error, match=message):
        augment.sample(images, labels, 2, generator=generator)


def test_bad_batches(generator):
    augment = Augmenter(6, 4)
    for batch_size in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="batch_size is .*, expected an integer of at least 1"):
            augment.sample(IMAGES, LABELS, batch_size, generator=generator)
    with pytest.raises(InputError, match="images has no samples"):
        augment.sample(IMAGES[:0], LABELS[:0], 1, generator=generator)
