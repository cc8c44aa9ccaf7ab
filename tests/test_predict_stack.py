"""Prediction of stacks page by page: what is written, when pages are read, and what bad stacks say."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import unet_fast as uf
from tests.networks import grey, lively, small_networks, whole_image  # noqa: F401
from tests.tolerances import NETWORK_FLOAT32
from unet_fast.data.stacks import needs_bigtiff
from unet_fast.errors import InputError
from unet_fast.predict import OverlapTile, predict_stack


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_stack_of_probabilities(rng: np.random.Generator, tmp_path: Path, num_classes: int) -> None:
    net = lively(uf.UNet(1, num_classes, base_channels=4, depth=2), rng)
    pages = grey(rng, 3, 1, 35, 50)
    path = tmp_path / "new" / "p.tif"
    predict_stack(net, pages, path, tile=20, batch_size=4, progress=False)
    expected = OverlapTile(net)(pages)
    written = tifffile.imread(path)
    assert written.dtype == np.float32
    if num_classes < 3:
        expected = expected[:, -1]
    np.testing.assert_allclose(written, expected, **NETWORK_FLOAT32)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == (9 if num_classes == 3 else 3)
        assert not tiff.is_bigtiff
        assert tiff.pages[0].compression.name == "ADOBE_DEFLATE"  # type: ignore[union-attr]
    assert [entry.name for entry in path.parent.iterdir()] == ["p.tif"]


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, np.uint8), (300, np.uint16)])
def test_stack_of_labels(rng: np.random.Generator, tmp_path: Path, num_classes: int, dtype: type) -> None:
    net = lively(uf.UNet(1, num_classes, base_channels=4, depth=2), rng)
    pages = [rng.integers(0, 255, (35, 41), dtype=np.uint8) for _ in range(2)]

    def halve(page: np.ndarray) -> np.ndarray:
        assert page.shape == (1, 1, 35, 41)
        return page.astype(np.float32) / 128.0

    predict_stack(net, pages, tmp_path / "l.tif", preprocess=halve, output="labels", progress=False)
    written = tifffile.imread(tmp_path / "l.tif")
    assert written.dtype == dtype
    expected = OverlapTile(net, output="labels")(np.stack(pages)[:, None].astype(np.float32) / 128.0)
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize(("count", "num_classes"), [(1, 2), (1, 3), (2, 4)])
def test_written_stacks_read_back_in_the_same_shape(
    rng: np.random.Generator, tmp_path: Path, count: int, num_classes: int
) -> None:
    """Also where a single page, or 3 and 4 channels, could be taken for a colour image."""
    net = uf.UNet(1, num_classes, base_channels=2, depth=1)
    predict_stack(net, grey(rng, count, 12, 4), tmp_path / "p.tif", progress=False)
    channels = 1 if num_classes == 2 else num_classes
    assert uf.data.read_images(tmp_path / "p.tif").shape == (count, channels, 12, 4)


def test_one_page_is_held_at_a_time(rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are asked for in order by the calling thread, and all but the last two results are gone by then."""
    events: list[str] = []
    results: list[weakref.ref[np.ndarray]] = []
    predict = OverlapTile.__call__

    def predict_and_remember(self: OverlapTile, page: np.ndarray) -> np.ndarray:
        events.append("predict")
        result = np.array(predict(self, page))
        results.append(weakref.ref(result))
        return result

    class Reader:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> np.ndarray:
            assert threading.current_thread() is threading.main_thread()
            gc.collect()
            assert sum(result() is not None for result in results) <= 2  # the writer still names the last two
            events.append(f"read {index}")
            return grey(rng, 20, 20)

    monkeypatch.setattr(OverlapTile, "__call__", predict_and_remember)
    predict_stack(uf.UNet(base_channels=2, depth=1), Reader(), tmp_path / "p.tif", progress=False)
    assert events == ["read 0", *(event for i in range(6) for event in (f"read {i}", "predict"))]


def test_bigtiff_beyond_four_gigabytes() -> None:
    assert not needs_bigtiff((30, 512, 512), np.dtype(np.float32))
    assert not needs_bigtiff((1, 2**16 - 1000, 2**16), np.dtype(np.uint8))
    assert needs_bigtiff((1, 2**16, 2**16), np.dtype(np.uint8))
    assert needs_bigtiff((100, 4096, 4096), np.dtype(np.float32))


class Failing:
    """A reader whose second page cannot be read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        if index:
            raise OSError("truncated")
        return np.zeros((20, 20), np.float32)


@pytest.mark.parametrize(
    ("pages", "name", "message"),
    [
        (lambda: [], "p.tif", "there are no pages"),
        (lambda: np.zeros((2, 20, 20)), "p.png", "written as TIFF, but its name is .*p.png"),
        (lambda: [np.zeros((20, 20)), np.zeros((20, 22))], "p.tif", "page 1 has size 20 x 22, but page 0 has 20 x 20"),
        (lambda: [np.zeros((20, 20)), np.full((20, 20), np.nan)], "p.tif", "page 1: image has 400 NaN"),
        (lambda: [np.zeros(20)], "p.tif", r"page 0 has shape \(20,\)"),
        (lambda: np.zeros((2, 3, 20, 20)), "p.tif", "page 0: image has 3 channels"),
        (Failing, "p.tif", "page 1 cannot be read: truncated"),
    ],
)
def test_bad_stacks_leave_the_old_file_whole(tmp_path: Path, pages: Callable[[], Any], name: str, message: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(InputError, match=message):
        predict_stack(uf.UNet(base_channels=2, depth=1), pages(), tmp_path / name, progress=False)
    assert (tmp_path / name).read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot create the folder"):
        predict_stack(
            uf.UNet(base_channels=2, depth=1), np.zeros((1, 20, 20)), tmp_path / "file" / "p.tif", progress=False
        )


def test_real_slices(real_data: Path, tmp_path: Path) -> None:
    net = uf.UNet(base_channels=2)
    images = uf.data.read_images(next(real_data.glob("isbi2012/*.tif")))[:2]
    predict_stack(net, images, tmp_path / "p.tif", preprocess=uf.data.normalize, progress=False)
    expected = whole_image(net, uf.data.normalize(images))[:, 1]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "p.tif"), expected, **NETWORK_FLOAT32)
