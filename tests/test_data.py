"""Reading and writing stacks and folders of images, normalisation, page ranges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests import tolerances
from unet_fast.data import normalize, parse_slices, read_images, write_stack
from unet_fast.errors import InputError, InputTypeError

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiff_dtypes(rng: np.random.Generator, tmp_path: Path, dtype: str) -> None:
    stack = draw(rng, (3, 7, 5), dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    read = read_images(tmp_path / "a.tif")
    assert read.dtype == np.float32 and read.shape == (3, 1, 7, 5) and read.flags.c_contiguous
    np.testing.assert_array_equal(read[:, 0], stack.astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "lzma"},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "zlib", "rowsperstrip": 3},
        {"bigtiff": True},
        {"bigtiff": True, "compression": "zlib"},
        {"byteorder": ">"},
        {"byteorder": ">", "bigtiff": True},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
    ],
    ids=str,
)
def test_tiff_encodings(rng: np.random.Generator, tmp_path: Path, options: dict[str, object]) -> None:
    stack = draw(rng, (4, 21, 17), "uint16")
    name = "a.ome.tif" if options.get("ome") else "a.tif"
    tifffile.imwrite(tmp_path / name, stack, **{"photometric": "minisblack", **options})
    np.testing.assert_array_equal(read_images(tmp_path / name)[:, 0], stack)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_white_is_zero(rng: np.random.Generator, tmp_path: Path, dtype: str) -> None:
    """The larger the stored number, the darker it is meant."""
    stack = rng.random((3, 9, 8)) < 0.5 if dtype == "bool" else draw(rng, (3, 9, 8), dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="miniswhite")
    highest = 1 if dtype == "bool" else np.iinfo(dtype).max
    np.testing.assert_array_equal(read_images(tmp_path / "a.tif")[:, 0], highest - stack.astype(np.int64))
    if dtype != "uint16":  # which Pillow returns as stored
        with Image.open(tmp_path / "a.tif") as shown:
            np.testing.assert_array_equal(read_images(tmp_path / "a.tif")[0, 0], np.asarray(shown).astype(np.float32))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("YX", (9, 8)),
        ("ZYX", (5, 9, 8)),
        ("TYX", (5, 9, 8)),
        ("CYX", (3, 9, 8)),
        ("ZCYX", (4, 3, 9, 8)),
        ("CZYX", (3, 4, 9, 8)),
        ("TZCYX", (2, 3, 4, 9, 8)),
        ("TCZYX", (2, 3, 4, 9, 8)),
    ],
)
def test_ome_axes(rng: np.random.Generator, tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    stack = draw(rng, shape, "uint8")
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, photometric="minisblack", metadata={"axes": axes})
    order = [axes.index(name) for name in "TZCYX" if name in axes]
    size = dict(zip(axes, shape, strict=True))
    expected = stack.transpose(order).reshape(-1, size.get("C", 1), size["Y"], size["X"])
    np.testing.assert_array_equal(read_images(tmp_path / "a.ome.tif"), expected)


@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour(rng: np.random.Generator, tmp_path: Path, samples: int, planar: str) -> None:
    """Channels come first and alpha is dropped."""
    stack = draw(rng, (2, 6, 5, samples), "uint8")
    on_disk = stack if planar == "contig" else np.moveaxis(stack, 3, 1)
    tifffile.imwrite(tmp_path / "a.tif", on_disk, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_images(tmp_path / "a.tif"), np.moveaxis(stack[..., :3], 3, 1))


def test_one_bit_and_bool(rng: np.random.Generator, tmp_path: Path) -> None:
    mask = rng.random((13, 11)) < 0.5
    Image.fromarray(mask).save(tmp_path / "group4.tif", compression="group4")
    Image.fromarray(mask).save(tmp_path / "bit.png")
    tifffile.imwrite(tmp_path / "bool.tif", mask[None], photometric="minisblack")
    for name in ("group4.tif", "bit.png", "bool.tif"):
        read = read_images(tmp_path / name)
        assert read.shape == (1, 1, 13, 11)
        np.testing.assert_array_equal(read[0, 0] > 0, mask)


def test_pages_of_different_compression_keep_their_order(rng: np.random.Generator, tmp_path: Path) -> None:
    stack = draw(rng, (5, 8, 8), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index, page in enumerate(stack):
            writer.write(page, contiguous=False, metadata=None, compression="zlib" if index % 2 else None)
    np.testing.assert_array_equal(read_images(tmp_path / "a.tif")[:, 0], stack)


def test_thumbnails_are_no_pages(rng: np.random.Generator, tmp_path: Path) -> None:
    image = draw(rng, (32, 32), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image, metadata=None)
        writer.write(image[::4, ::4], metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read_images(tmp_path / "a.tif"), image[None, None])


def test_long_imagej_channel_axis_is_a_stack(rng: np.random.Generator, tmp_path: Path) -> None:
    """Written without axes, 12 pages become 12 channels, which ImageJ itself cannot show."""
    stack = draw(rng, (12, 8, 8), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True)
    assert read_images(tmp_path / "a.tif").shape == (12, 1, 8, 8)


@pytest.mark.parametrize(("mode", "shape"), [("L", (6, 5)), ("RGB", (6, 5, 3)), ("LA", (6, 5, 2)), ("RGBA", (6, 5, 4))])
def test_png_modes(rng: np.random.Generator, tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    pixels = draw(rng, shape, "uint8")
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    colours = {"L": 1, "LA": 1}.get(mode, 3)
    expected = np.moveaxis(pixels.reshape(6, 5, -1)[..., :colours], 2, 0)[None]
    np.testing.assert_array_equal(read_images(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_png_16_bit(rng: np.random.Generator, tmp_path: Path, shape: tuple[int, ...]) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels = draw(rng, shape, "uint16")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    np.testing.assert_array_equal(read_images(tmp_path / "a.png")[0], np.moveaxis(pixels.reshape(6, 5, -1), 2, 0))


def test_folder_in_natural_order(rng: np.random.Generator, tmp_path: Path) -> None:
    stack = draw(rng, (12, 6, 5), "uint8")
    for index, image in enumerate(stack):
        if index % 2:
            Image.fromarray(image).save(tmp_path / f"img{index}.png")
        else:
            tifffile.imwrite(tmp_path / f"img{index}.TIF", image)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._img3.png").write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(read_images(tmp_path)[:, 0], stack)


def test_folder_of_stacks(rng: np.random.Generator, tmp_path: Path) -> None:
    stack = draw(rng, (5, 6, 5), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", stack[:3], photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", stack[3:], photometric="minisblack")
    np.testing.assert_array_equal(read_images(tmp_path)[:, 0], stack)


def test_normalize(rng: np.random.Generator) -> None:
    images = rng.normal(5, 3, (3, 2, 31, 17)) * rng.uniform(1, 1000, (3, 2, 1, 1))
    images[1, 1] = 1e6 + 0.1
    out = normalize(images)
    std = images.std(axis=(2, 3), keepdims=True)
    std[1, 1] = 1
    expected = (images - images.mean(axis=(2, 3), keepdims=True)) / std
    expected[1, 1] = 0
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, **tolerances.BY_DTYPE[torch.float32])
    np.testing.assert_array_equal(out, normalize(images[:, :, ::-1])[:, :, ::-1])
    assert not normalize(np.full((1, 1, 3, 3), 7, np.uint8)).any()
    assert normalize(np.zeros((0, 1, 3, 3))).shape == (0, 1, 3, 3)


def test_normalize_bad_input() -> None:
    with pytest.raises(InputError, match=r"3 dimensions, shape \(1, 2, 3\); expected \(N, C, H, W\)"):
        normalize(np.zeros((1, 2, 3)))
    with pytest.raises(InputTypeError, match="dtype complex128"):
        normalize(np.zeros((1, 1, 2, 3), complex))
    bad = np.zeros((3, 1, 4, 4), np.float32)
    bad[1, 0, 2, 2] = np.nan
    with pytest.raises(InputError, match="slice 1 of the images holds NaN or infinite values"):
        normalize(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20:25", [20, 21, 22, 23, 24]),
        ("3", [3]),
        ("0", [0]),
        (":2", [0, 1]),
        ("23:", [23, 24]),
        ("::10", [0, 10, 20]),
        (" 1 : 4 , 7", [1, 2, 3, 7]),
        ("7,1:3", [7, 1, 2]),
        (":", list(range(25))),
    ],
)
def test_parse_slices(text: str, expected: list[int]) -> None:
    assert parse_slices(text, 25) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a range"),
        ("a:b", "'a:b' is not a range"),
        ("-5:", "'-5:' is not a range"),
        ("1:2:3:4", "is not a range"),
        ("1,,2", "'' is not a range"),
        ("0:5:0", "step of '0:5:0' is 0"),
        ("25", "go beyond the last one: '25'; expected .* the 25 slices 0 to 24"),
        ("20:26", "go beyond the last one: '20:26'"),
        ("30:", "go beyond"),
        ("5:5", "'5:5' is empty"),
        ("9:3", "'9:3' is empty"),
        ("0:5,4", "slice 4 twice"),
    ],
)
def test_parse_slices_bad(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_slices(text, 25)
    one_line(error)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (1, 5, 4), (3, 5, 4), (2, 3, 5, 4), (3, 1, 5, 4)])
def test_write_stack(rng: np.random.Generator, tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = rng.integers(0, 2, shape).astype(bool) if dtype == "bool" else draw(rng, shape, dtype)
    if array.dtype.itemsize == 8 and array.dtype.kind != "f":
        array %= 300  # so that float32, which reading returns, holds it
    write_stack(tmp_path / "sub" / "a.tif", array)
    read = read_images(tmp_path / "sub" / "a.tif")
    assert read.shape == {2: (1, 1), 3: shape[:1] + (1,), 4: shape[:2]}[len(shape)] + shape[-2:]
    np.testing.assert_array_equal(read.reshape(shape), array.astype(np.float32))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.tif"]


def test_write_stack_is_readable_elsewhere(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.int64).reshape(2, 3, 4)
    write_stack(tmp_path / "a.tif", array)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 2 and image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), array[0])


def test_write_stack_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \(3,\).*expected \(H, W\)"):
        write_stack(tmp_path / "a.tif", np.zeros(3))
    with pytest.raises(InputError, match="not empty"):
        write_stack(tmp_path / "a.tif", np.zeros((0, 4, 4)))
    with pytest.raises(InputTypeError, match="cannot write dtype complex64"):
        write_stack(tmp_path / "a.tif", np.zeros((4, 4), np.complex64))
    with pytest.raises(InputError, match=r"ends in \.tif"):
        write_stack(tmp_path / "a.jpg", np.zeros((4, 4), np.uint8))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot create the folder .*choose a folder"):
        write_stack(tmp_path / "file" / "a.tif", np.zeros((4, 4), np.uint8))
    assert not (tmp_path / "a.tif").exists()


def test_import_is_light() -> None:
    heavy = "{'torch', 'scipy', 'skimage', 'tifffile', 'PIL', 'imagecodecs', 'matplotlib'}"
    code = f"import sys, unet_fast.data; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_real_images(real_data: Path) -> None:
    for path, shape in (("isbi2012/train-volume.tif", (25, 1, 512, 512)), ("usiigaci/images.tif", (12, 1, 1022, 1024))):
        images = read_images(real_data / path)
        assert images.shape == shape
        np.testing.assert_array_equal(images[3, 0], tifffile.imread(real_data / path, key=3))
    assert read_images(real_data / "dsb2018-he256x320/images.tif").shape == (16, 3, 256, 320)
