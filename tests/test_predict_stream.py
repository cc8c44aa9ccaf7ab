"""Prediction in windows: equal, bit for bit, to that of the whole image; what a killed run leaves; what is read when."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_fast as uf
from tests import processes
from tests.networks import lively
from unet_fast.data.pages import Pages
from unet_fast.errors import InputError
from unet_fast.predict import Predictor, foreground_instances, targets
from unet_fast.predict import stream as streaming
from unet_fast.predict import windows as streaming_windows
from unet_fast.predict.join import Join
from unet_fast.predict.segments import Segments
from unet_fast.predict.stream import Stream, identity_of


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A stack of two tiled uint16 pages."""
    image = rng.integers(100, 3000, (2, 230, 301), dtype=np.uint16)
    image[:, 40:200:7] += 900
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), photometric="minisblack", compression="zlib")
    return tmp_path


def median_level(net: uf.models.SegmentationModel, image: np.ndarray, **options: object) -> float:
    """A threshold that parts the pixels of ``image``, whatever network was drawn."""
    foreground = 1 - Predictor(net, preprocess=uf.data.normalize, **options)(image)[:, 0]
    return float(np.median(foreground))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("output", "classes"), [("probabilities", 2), ("probabilities", 3), ("labels", 3), ("labels", 2), ("instances", 2), ("instances of cores", 3), ("labels of cores", 3), ("probabilities of cores", 3)])  # fmt: skip
def test_windows_give_what_the_whole_gives(files, rng, monkeypatch, padding, output, classes):
    monkeypatch.setattr(streaming, "_PART_PIXELS", 10_000)  # several parts
    torch.manual_seed(1)  # now and then a network of so few channels gives one number everywhere
    net = lively(uf.UNet(1, classes, base_channels=4, depth=2, padding=padding), rng)
    image = tifffile.imread(files / "a.tif")[:, None]
    options = {"tile": 60, "padding": "nearest"}
    if output.endswith(" of cores"):
        output, options["separate"], classes = output.split()[0], "cores", 2
    if classes == 2 and output != "probabilities":
        options["threshold"] = median_level(net, image, **options)
    predictor = Predictor(net, preprocess=uf.data.normalize, output=output, min_size=4, **options)
    expected = predictor(image)
    stream = Stream(predictor, Pages([files / "a.tif"]), files / "out.tif")
    assert len(stream.groups) > 4 and len(stream.rows.starts) > 3
    targets.run(stream, progress=False)
    found = tifffile.imread(files / "out.tif")
    assert found.dtype == expected.dtype
    if output == "probabilities" and classes == 2:
        expected = expected[:, 1]
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1
    assert sorted(path.name for path in files.iterdir()) == ["a.tif", "out.tif"]


def test_large_pages_are_written_in_tiles(tmp_path, rng):
    net = lively(uf.UNet(1, 2, base_channels=4, depth=2), rng)
    image = rng.integers(0, 255, (90, 1100), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=7)
    predictor = Predictor(net, preprocess=uf.data.normalize, tile=512, output="labels")
    stream = Stream(predictor, Pages([tmp_path / "a.tif"]), tmp_path / "o.tif")
    targets.run(stream, progress=False)
    with tifffile.TiffFile(tmp_path / "o.tif") as tiff:
        assert tiff.pages[0].is_tiled and tiff.pages[0].compression.name == "ADOBE_DEFLATE"
        np.testing.assert_array_equal(tiff.asarray(), predictor(image))


def test_pyramids_are_written_and_read(tmp_path, rng):
    net = lively(uf.UNet(1, 3, base_channels=2, depth=1), rng)
    image = rng.integers(0, 255, (1100, 700), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(image, subifds=1, tile=(256, 256), metadata={"axes": "YX"})
        writer.write(image[::2, ::2], subfiletype=1, tile=(256, 256))
    predictor = Predictor(net, preprocess=uf.data.normalize, tile=256, output="labels")
    pages = Pages([tmp_path / "a.ome.tif"])
    assert len(pages) == 1 and pages.shape(0) == (1, 1100, 700)
    targets.run(Stream(predictor, pages, tmp_path / "o.ome.tif"), progress=False)
    expected = predictor(image)[0]
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        assert tiff.is_ome and [level.shape[-2:] for level in tiff.series[0].levels] == [
            (1100, 700),
            (550, 350),
            (275, 175),
        ]
        for level, array in enumerate(tiff.series[0].levels):
            np.testing.assert_array_equal(array.asarray().reshape(array.shape[-2:]), expected[:: 2**level, :: 2**level])


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_bands_are_regrouped_and_thinned(heights, rows, step):
    from unet_fast.data.bands import every, regrouped

    whole = np.arange(sum(heights) * 5).reshape(-1, 5)
    cuts = np.cumsum([0, *heights])
    bands = [whole[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    blocks = list(regrouped(iter(bands), rows))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks] or [whole]), whole)
    assert all(top % rows == 0 for top, _ in blocks) and all(len(block) % rows == 0 for _, block in blocks[:-1])
    thin = list(every(iter(bands), step))
    np.testing.assert_array_equal(np.concatenate([*thin, whole[:0, ::step]]), whole[::step, ::step])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 6), st.integers(0, 2**32 - 1), st.floats(0.2, 0.8))
@settings(max_examples=150, deadline=None)
def test_objects_of_bands_are_those_of_the_whole(height, width, min_size, seed, density):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < density
    cuts = sorted({0, height, *rng.integers(0, height + 1, 4).tolist()})
    bands = [mask[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    join = Join()
    for band in bands:
        join.add(band)
    numbers = join.numbers(min_size)
    found = np.concatenate([join.band(index, band, numbers) for index, band in enumerate(bands)])
    np.testing.assert_array_equal(found, foreground_instances(mask.astype(float), min_size=min_size))


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([None, (16, 16), (32, 48)]),
    st.sampled_from("u1 u2 f4".split()),
)
@settings(max_examples=60, deadline=None)
def test_segments_are_put_together_as_they_were_cut(height, width, tile, dtype):
    plane = (np.arange(height * width) % 251).reshape(height, width).astype(dtype)
    segments = Segments(tile, 16 if tile is None else tile[0])
    pieces = list(segments.cut(plane))
    assert len(pieces) == segments.count(height, width)
    np.testing.assert_array_equal(segments.join(pieces, (height, width), np.dtype(dtype)), plane)


def test_a_run_that_failed_goes_on(files, rng, monkeypatch):
    monkeypatch.setattr(streaming, "_PART_PIXELS", 10_000)
    net = lively(uf.UNet(1, 2, base_channels=4, depth=2), rng)
    predictor = Predictor(net, preprocess=uf.data.normalize, tile=60, output="labels")
    expected = predictor(tifffile.imread(files / "a.tif")[:, None])

    def begin(identity: str = identity_of(net)) -> Stream:
        return Stream(predictor, Pages([files / "a.tif"]), files / "o.tif", identity=identity)

    first = begin()
    first.make(first.missing()[:3])
    second = begin()
    assert second.missing() == list(range(3, len(second.groups)))
    # a part that a power cut has shortened is made again
    part = sorted(second.store.folder.glob("*.part"))[1]
    part.write_bytes(part.read_bytes()[:-1])
    assert 1 in begin().missing()
    made: list[int] = []
    whole = Stream.make
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "make", lambda self, numbers, done: (made.extend(numbers), whole(self, numbers, done)))
        targets.run(begin(), progress=False)
    assert made == [1, *range(3, len(second.groups))]
    np.testing.assert_array_equal(tifffile.imread(files / "o.tif"), expected)
    # other weights, another image: nothing of it is used
    first = begin()
    first.make(first.missing()[:3])
    assert len(begin("other").missing()) == len(first.groups)
    assert identity_of(net) != identity_of(lively(uf.UNet(1, 2, base_channels=4, depth=2), rng))


KILLED = """
import os, signal, sys
from unet_fast.predict.parts import FolderStore
from unet_fast.predict import stream
from unet_fast import cli
stream._PART_PIXELS = 10_000
put = FolderStore.put
def once(self, number, blobs):
    put(self, number, blobs)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
FolderStore.put = once if sys.argv.pop() == "kill" else put
cli.main()
"""


def test_sigkill_in_the_middle_and_go_on(files, rng):
    from unet_fast import train
    from unet_fast.train.run_folder import save_model

    config = train.default_config("cpu", steps=1, base_channels=4, depth=2, tile=32, tta=1)
    net = lively(uf.models.create(**config.model), rng)
    (files / "run").mkdir()
    config.save(files / "run" / "config.json")
    save_model(files / "run", net, {})
    command = ["-c", KILLED, "predict", files / "run", "--images", files / "a.tif", "--out",
               files / "o.tif", "--tile", "60", "--output", "instances", "--device", "cpu"]  # fmt: skip
    killed = processes.run(*command, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (files / "o.tif").exists()
    done = processes.run(*command, "finish")
    assert done.returncode == 0, done.stderr
    assert b"going on with" in done.stdout and b"time: network" in done.stdout
    predictor = uf.Run.load(files / "run", "cpu").predictor(tile=60, output="instances")
    np.testing.assert_array_equal(
        tifffile.imread(files / "o.tif"), predictor(tifffile.imread(files / "a.tif")[:, None])
    )
    assert not list(files.glob(".o.tif*"))


def test_memory_holds_a_few_rows_of_tiles(tmp_path, rng):
    """No more than a band is ever decoded at once; counted in pixels, not in time or RSS."""
    side = 4096
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        cells = (rng.integers(0, 4000, (256, 256), np.uint16) for _ in range((side // 256) ** 2))
        writer.write(cells, shape=(side, side), dtype=np.uint16, tile=(256, 256))
    pages = Pages([tmp_path / "a.tif"])
    largest = 0
    window = Pages.window

    class Counted(Pages):
        def window(self, index, start, size):  # type: ignore[no-untyped-def]
            nonlocal largest
            largest = max(largest, size[0] * size[1])
            return window(self, index, start, size)

    pages.__class__ = Counted
    net = lively(uf.UNet(1, 2, base_channels=2, depth=1), rng)
    predictor = Predictor(net, preprocess=uf.data.normalize, tile=512, output="labels")
    stream = Stream(predictor, pages, tmp_path / "o.tif")
    stream.make([0])
    assert 0 < largest <= streaming_windows.BAND_PIXELS < side * side


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_in_and_out(files, rng, version):
    zarr = pytest.importorskip("zarr", reason="the extra unet_fast[zarr] is not installed")
    image = tifffile.imread(files / "a.tif")
    group = zarr.open_group(str(files / "a.zarr"), mode="w", zarr_format=version)
    # axes (c, y, x) of an OME-Zarr image: of three channels, two are read as one image
    group.create_array("0", shape=image.shape, chunks=(1, 100, 100), dtype=image.dtype)[:] = image
    scales = [{"axes": [{"name": n} for n in "zyx"], "datasets": [{"path": "0"}]}]
    group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"version": "0.5", "multiscales": scales}})
    np.testing.assert_array_equal(uf.data.read_images(files / "a.zarr")[:, 0], image)
    pages = Pages([files / "a.zarr"])
    np.testing.assert_array_equal(pages.window(1, (7, 90), (33, 120)), image[1:, 7:40, 90:210])
    net = lively(uf.UNet(1, 3, base_channels=4, depth=2), rng)
    predictor = Predictor(net, preprocess=uf.data.normalize, tile=60)
    targets.run(Stream(predictor, pages, files / "o.zarr"), progress=False)
    written = zarr.open_group(str(files / "o.zarr"), mode="r")
    np.testing.assert_array_equal(written["0"][:], predictor(image[:, None]))
    assert written.attrs["ome"]["multiscales"][0]["axes"][-1]["name"] == "x"
    np.testing.assert_array_equal(uf.data.read_images(files / "o.zarr").shape, (2, 3, 230, 301))
    # a folder that is no Zarr is not replaced, and nothing is predicted for it
    (files / "mine.zarr").mkdir()
    stream = Stream(predictor, pages, files / "mine.zarr")
    with pytest.raises(InputError, match="is not a Zarr"):
        targets.run(stream, progress=False)
    assert stream.stages.network == 0
    # what is written has a checksum in every chunk
    chunk = next(path for path in (files / "o.zarr" / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(InputError, match="has a damaged chunk"):
        uf.data.read_images(files / "o.zarr")


@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ((2**25, 2, 2), (2**10, 2, 2), "announces 33,554,432 images"),
        ((2**17, 2**17), (2**17, 2**17), "more than the limit"),
    ],
)
def test_zarrs_that_ask_for_more_than_any_memory(tmp_path, shape, chunks, message):
    zarr = pytest.importorskip("zarr", reason="the extra unet_fast[zarr] is not installed")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=chunks, dtype=np.uint8)
    with pytest.raises(InputError, match=message):
        Pages([tmp_path / "a.zarr"])


def test_what_streams_refuse(files, rng):
    net = lively(uf.UNet(1, 2, base_channels=4, depth=2), rng)
    pages = Pages([files / "a.tif"])
    with pytest.raises(InputError, match="in windows with unet_fast.data.normalize"):
        Stream(Predictor(net, preprocess=lambda image: image), pages, files / "o.tif")
    with pytest.raises(InputError, match="no pages"):
        Stream(Predictor(net), pages.select([]), files / "o.tif")
    tifffile.imwrite(files / "b.tif", np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=r"different sizes: a\[0\] and b"):
        Stream(Predictor(net), Pages([files / "a.tif", files / "b.tif"]), files / "o.tif")
    with pytest.raises(InputError, match="end it in .tif"):
        targets.run(Stream(Predictor(net), pages, files / "o.png"), progress=False)
    bad = np.zeros((60, 60), np.float32)
    bad[50, 3] = np.nan
    tifffile.imwrite(files / "bad.tif", bad)
    with pytest.raises(InputError, match="the image bad holds 1 NaN value"):
        targets.run(Stream(Predictor(net, preprocess=uf.data.normalize), Pages([files / "bad.tif"]), files / "o.tif"))
