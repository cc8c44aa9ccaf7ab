"""Pages and windows that are read when they are asked for, against decoding the whole file at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.test_data import draw
from unet_fast.data import Pages
from unet_fast.data._tiff import TiffImages
from unet_fast.data.formats import open_file
from unet_fast.errors import InputError

# (options of tifffile, axes, shape); every other axis than C and S is a row of images
FILES: list[tuple[dict[str, Any], str, tuple[int, ...]]] = [
    ({}, "ZYX", (5, 31, 47)),
    ({"compression": "zlib", "rowsperstrip": 7}, "ZYX", (3, 31, 47)),
    ({"compression": "zlib", "predictor": True, "rowsperstrip": 4}, "ZYX", (3, 31, 47)),
    ({"rowsperstrip": 5, "byteorder": ">"}, "ZYX", (3, 31, 47)),
    ({"tile": (16, 32)}, "ZYX", (3, 31, 47)),
    ({"tile": (16, 16), "compression": "lzw"}, "ZYX", (2, 50, 33)),
    ({"tile": (16, 32), "photometric": "rgb", "compression": "zlib"}, "ZYXS", (2, 31, 47, 3)),
    (
        {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 6, "compression": "zlib"},
        "ZSYX",
        (2, 3, 31, 47),
    ),
    ({"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, "ZSYX", (2, 3, 31, 47)),
    ({"photometric": "rgb"}, "ZYXS", (2, 31, 47, 3)),
    ({"imagej": True}, "TZCYX", (2, 3, 2, 31, 47)),
    ({"ome": True, "compression": "zlib"}, "TCZYX", (2, 2, 3, 31, 47)),
    ({"ome": True, "tile": (16, 16), "bigtiff": True}, "CZYX", (2, 3, 31, 47)),
    ({"metadata": {"truncated": True}}, "ZYX", (4, 31, 47)),
]


def write(path: Path, array: np.ndarray, options: dict[str, Any], axes: str) -> None:
    metadata = {"axes": axes.replace("S", "S"), **options.get("metadata", {})}
    rest = {key: value for key, value in options.items() if key != "metadata"}
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "metadata": metadata, **rest})


def whole(path: Path, axes: str, shape: tuple[int, ...]) -> np.ndarray:
    """All images of a file, by tifffile's own reading of everything at once."""
    array = tifffile.imread(path).reshape(shape)
    order = [axes.index(name) for name in axes if name not in "CSYX"]
    order += [axes.index(name) for name in "CS" if name in axes] + [axes.index("Y"), axes.index("X")]
    channels = int(np.prod([shape[axes.index(name)] for name in "CS" if name in axes] or [1]))
    return array.transpose(order).reshape(-1, channels, *shape_of(axes, shape))


def shape_of(axes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[axes.index("Y")], shape[axes.index("X")]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("options", "axes", "shape"), FILES, ids=lambda value: str(value))
def test_pages_and_windows_are_those_of_the_whole(
    rng: np.random.Generator, tmp_path: Path, options: dict[str, Any], axes: str, shape: tuple[int, ...], dtype: str
) -> None:
    path = tmp_path / ("a.ome.tif" if options.get("ome") else "a.tif")
    stored = draw(rng, shape, dtype)
    write(path, stored, options, axes)
    expected = whole(path, axes, shape)
    if options.get("ome"):  # tifffile reorders the axes to those of OME
        ome = "TZCYX" if "T" in axes else "ZCYX"
        order = [axes.index(name) for name in ome]
        expected = stored.transpose(order).reshape(expected.shape)
    pages = Pages([path])
    assert len(pages) == len(expected)
    height, width = shape_of(axes, shape)
    for index in rng.permutation(len(pages)):
        assert pages.shape(index) == expected.shape[1:] and pages.dtype(index) == np.dtype(dtype)
        np.testing.assert_array_equal(pages[index], expected[index])
        assert pages[index].dtype == np.dtype(dtype)
        for _ in range(4):
            y, x = rng.integers(0, height), rng.integers(0, width)
            h, w = rng.integers(1, height - y + 1), rng.integers(1, width - x + 1)
            window = pages.window(index, (y, x), (h, w))
            np.testing.assert_array_equal(window, expected[index][:, y : y + h, x : x + w])


def test_a_window_decodes_its_own_tiles_only(rng: np.random.Generator, tmp_path: Path) -> None:
    """A damaged tile far away is not read, one inside is an error."""
    image = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(16, 16), compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offset, count = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[offset : offset + count] = bytes(count)
    (tmp_path / "a.tif").write_bytes(content)
    pages = Pages([tmp_path / "a.tif"])
    np.testing.assert_array_equal(pages.window(0, (3, 5), (40, 40))[0], image[3:43, 5:45])
    for read in (lambda: pages[0], lambda: pages.window(0, (40, 40), (10, 10))):
        with pytest.raises(InputError, match=r"a\.tif is a damaged TIFF"):
            read()


def test_many_files_of_several_sizes(rng: np.random.Generator, tmp_path: Path) -> None:
    """More files than stay open, pages from all, some of them chosen."""
    images, files = [], []
    for number in range(20):
        count, size = int(rng.integers(1, 4)), (int(rng.integers(3, 9)), int(rng.integers(3, 9)))
        stack = rng.integers(0, 255, (count, *size), dtype=np.uint8)
        files.append(tmp_path / f"f{number}.{'png' if count == 1 else 'tif'}")
        if count == 1:
            Image.fromarray(stack[0]).save(files[-1])
        else:
            tifffile.imwrite(files[-1], stack, photometric="minisblack")
        images += [(f"f{number}" if count == 1 else f"f{number}[{k}]", image) for k, image in enumerate(stack)]
    pages = Pages(files)
    assert pages.names == [name for name, _ in images] and sum(pages.counts()) == len(pages)
    order = rng.permutation(len(pages)).tolist()
    for page, index in zip(pages.select(order), order, strict=True):
        np.testing.assert_array_equal(page[0], images[index][1])
    assert pages.select(order).names == [images[index][0] for index in order]
    assert pages.place(len(pages) - 1)[0] == files[-1]


def test_a_window_outside_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "a.png")
    pages = Pages([tmp_path / "a.png"])
    assert pages.window(0, (1, 2), (4, 4)).shape == (1, 4, 4)
    for start, size in (((2, 0), (4, 1)), ((0, -1), (1, 1)), ((0, 5), (1, 2))):
        with pytest.raises(IndexError, match="is not inside 5 x 6"):
            pages.window(0, start, size)


def test_nothing_is_decoded_before_it_is_asked_for(rng: np.random.Generator, tmp_path: Path, monkeypatch: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", draw(rng, (50, 20, 20), "uint8"), photometric="minisblack", compression="zlib")
    decoded = []
    pages = Pages([tmp_path / "a.tif"])
    original = TiffImages.window
    monkeypatch.setattr(
        TiffImages, "window", lambda self, index, *rest: decoded.append(index) or original(self, index, *rest)
    )
    assert len(pages) == 50 and not decoded
    assert pages[17].shape == (1, 20, 20) and decoded == [17]


@pytest.mark.parametrize("samples", [2, 4])
def test_alpha_is_no_channel(rng: np.random.Generator, tmp_path: Path, samples: int) -> None:
    pixels = rng.integers(0, 255, (6, 5, samples), dtype=np.uint8)
    Image.fromarray(pixels, "LA" if samples == 2 else "RGBA").save(tmp_path / "a.png")
    pages = Pages([tmp_path / "a.png"])
    assert pages.shape(0) == (samples - 1, 6, 5) and open_file(tmp_path / "a.png").alpha == 1
    np.testing.assert_array_equal(pages[0], np.moveaxis(pixels[..., :-1], 2, 0))
    np.testing.assert_array_equal(pages.window(0, (1, 1), (3, 2)), pages[0][:, 1:4, 1:3])
