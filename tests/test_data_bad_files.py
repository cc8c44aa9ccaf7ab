"""Files that cannot be used: each is refused with one line that names file, cause and cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.test_data import draw, one_line
from unet_fast.data import read_images
from unet_fast.errors import InputError, InputTypeError


def encode(path: Path, stack: np.ndarray, how: str) -> None:
    if how == "pillow":
        pages = [Image.fromarray(page) for page in stack]
        pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_deflate")
    elif how == "paged":
        with tifffile.TiffWriter(path) as writer:
            for page in stack:
                writer.write(page, contiguous=False, metadata=None)
    else:
        options = {"zlib": {"compression": "zlib"}, "lzw": {"compression": "lzw"}, "imagej": {"imagej": True}}
        options |= {"ome": {"ome": True}, "raw": {}, "big": {"bigtiff": True}, "one": {"metadata": {"truncated": True}}}
        tifffile.imwrite(path, stack, photometric="minisblack", **options[how])


@pytest.mark.parametrize("how", ["pillow", "paged", "raw", "big", "zlib", "lzw", "imagej", "ome", "one"])
def test_truncated_tiff(rng: np.random.Generator, tmp_path: Path, how: str) -> None:
    """However much is cut off, the file is refused and never read in part."""
    stack = draw(rng, (6, 40, 31), "uint8")
    encode(tmp_path / "whole.tif", stack, how)
    data = (tmp_path / "whole.tif").read_bytes()
    np.testing.assert_array_equal(read_images(tmp_path / "whole.tif").reshape(stack.shape), stack)
    lengths = {len(data) - 40, *rng.integers(8, len(data) - 40, 40).tolist()}
    for length in lengths:
        (tmp_path / "cut.tif").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.tif is (truncated|a damaged TIFF)") as error:
            read_images(tmp_path / "cut.tif")
        assert "again" in one_line(error) or "export" in one_line(error)


@pytest.mark.parametrize("shape", [(40, 31), (40, 31, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_truncated_png(rng: np.random.Generator, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.png_encode(draw(rng, shape, dtype))
    for length in (30, len(data) // 2, len(data) - 30):
        (tmp_path / "cut.png").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.png is a truncated or damaged PNG .*again") as error:
            read_images(tmp_path / "cut.png")
        one_line(error)


def test_page_without_data(tmp_path: Path) -> None:
    """A reader fills tiles that were never written with zeros; they are found out."""
    tiles = iter([np.ones((16, 16), "uint8")] * 4 + [None] * 4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(tiles, shape=(2, 32, 32), dtype="uint8", tile=(16, 16), photometric="minisblack")
    assert not tifffile.imread(tmp_path / "a.tif")[1].any()
    with pytest.raises(InputError, match="truncated: page 1 lacks pixel data"):
        read_images(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.tif is empty \(0 bytes\)"),
        (b"hello, world", r"a\.tif is neither a TIFF nor a PNG file; convert"),
        (b"II*\0\0\0\0\0", r"a\.tif is truncated: it has no page"),
        (b"II*\0\x08\0\0\0", r"a\.tif is truncated: the directory of page 0"),
    ],
)
def test_not_an_image(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_images(tmp_path / "a.tif")
    one_line(error)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.tif does not exist; check the path"):
        read_images(tmp_path / "no.tif")
    with pytest.raises(InputError, match="holds no TIFF or PNG file"):
        read_images(tmp_path)


def test_circular_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 4), "uint8"), metadata=None)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    start = int.from_bytes(data[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[end : end + 4] = data[4:8]
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(InputError, match="page list is circular"):
        read_images(tmp_path / "a.tif")


def test_pages_of_different_sizes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.ones((4, 5), "uint8"), metadata=None)
        writer.write(np.ones((6, 5), "uint8"), metadata=None)
    with pytest.raises(InputError, match=r"a\.tif holds pages of different sizes: page 0 is 4x5, page 1 is 6x5"):
        read_images(tmp_path / "a.tif")


def test_files_of_different_sizes(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), "uint8")).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 5, 3), "uint8")).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"a\.png is 4x5, .*b\.png is 4x5 with 3 channels; crop"):
        read_images(tmp_path)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "1 NaN value;"), (-np.inf, "1 infinite value;")])
def test_not_finite(rng: np.random.Generator, tmp_path: Path, value: float, word: str) -> None:
    stack = draw(rng, (4, 6, 5), "float32")
    stack[2, 5, 4] = value
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    with pytest.raises(InputError, match=rf"slice 2 \(a\[2\]\) of .*a\.tif holds {word} replace") as error:
        read_images(tmp_path / "a.tif")
    one_line(error)


def test_complex(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 5), "complex64"), photometric="minisblack")
    with pytest.raises(InputTypeError, match=r"complex values \(complex64\).*magnitude"):
        read_images(tmp_path / "a.tif")
