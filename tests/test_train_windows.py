"""Training on windows that are read from the files: the same pixels as resident data, exact after an interruption, little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from tests.test_cli import run
from unet_fast.data import normalize, read_dataset, read_pair
from unet_fast.data.cores import CORE, RIM, rim_width, rims_and_cores
from unet_fast.data.datasets import read_matching
from unet_fast.errors import InputError
from unet_fast.train import default_config, train, traits, windows
from unet_fast.train.checkpoint import load_tensors
from unet_fast.train.config import TrainConfig
from unet_fast.train.dataset import IGNORED, prepare

pytestmark = pytest.mark.usefixtures("plain_pictures")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images of 70 x 90 in tiles, labels that are instances, some of which touch."""
    rng, folder = np.random.default_rng(4), tmp_path_factory.mktemp("files")
    images = rng.integers(0, 4000, (3, 70, 90)).astype(np.uint16)
    labels = np.zeros(images.shape, np.uint16)
    for n in range(3):
        for number, (y, x) in enumerate(rng.integers(0, 60, (9, 2)), start=1):
            labels[n, y : y + 12, x : x + 14] = number
    for name, stack in (("i", images), ("l", labels)):
        tifffile.imwrite(folder / f"{name}.tif", stack, tile=(16, 16), photometric="minisblack", compression="zlib")
    return folder / "i.tif", folder / "l.tif"


def small(**changes: object) -> TrainConfig:
    options = {"steps": 6, "base_channels": 2, "depth": 1, "tile": 16, "batch_size": 2, "amp": False, **changes}
    options = {"w0": 4.0, "balance": True, **options}
    return default_config("cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("padding, mode", [("mirror", "reflect"), ("nearest", "edge"), ("zeros", "constant")])
def test_windows_are_those_of_the_resident_images(files: tuple[Path, Path], padding: str, mode: str) -> None:
    """Every window is cut out of the normalised, padded image; objects and classes are those of ``prepare``, but for what the
    window's own edge cuts."""
    config = small(image_padding=padding)
    dataset, pair = read_matching(*files), read_pair(*files)
    assert traits(dataset)["image_side"] == traits(pair)["image_side"] == 90
    feed = windows.Feed(dataset, config, 0)
    resident = prepare(pair, torch.device("cpu"), balance=True)
    margin = feed.side
    images = np.pad(normalize(pair.images), [(0, 0), (0, 0), *[(margin, margin)] * 2], mode=mode)  # type: ignore[call-overload]
    shapes = np.pad(resident.maps[0].numpy(), [(0, 0), *[(margin, margin)] * 2], mode=mode)  # type: ignore[call-overload]
    grey, middle, seen = normalize(pair.images)[:, 0], margin // 2, set()
    for step in range(12):
        for image, objects in zip(*feed.make(step, 2), strict=True):
            places = np.argwhere(np.isclose(grey, image[0, middle, middle], atol=1e-6)) + (0, middle, middle)
            cuts = [(n, slice(y, y + margin), slice(x, x + margin)) for n, y, x in places]
            found = [(n, ys, xs) for n, ys, xs in cuts if np.allclose(images[n, 0, ys, xs], image[0], atol=1e-6)]
            assert len(found) == 1, "the window of no image, or of several"
            n, ys, xs = found[0]
            seen.add((n, ys.start, xs.start))
            inside = slice(2, -2)
            np.testing.assert_array_equal(objects[inside, inside], shapes[n, ys, xs][inside, inside])
    assert len(seen) > 20
    feed.close()


def test_every_pixel_is_as_likely_to_be_a_centre(tmp_path: Path) -> None:
    """Of images of several sizes the larger are drawn more often; without shift the centre counts."""
    for name, size in (("a", (10, 20)), ("b", (30, 20))):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            value = np.arange(size[0] * size[1]).reshape(size) + (1000 if name == "b" else 0)
            tifffile.imwrite(
                tmp_path / folder / f"{name}.tif", (value % 2 if folder == "labels" else value).astype("u2")
            )
    dataset = read_dataset(tmp_path)
    feed = windows.Feed(dataset, small(image_padding="nearest"), 0)
    middle = feed.side // 2
    drawn = [feed.make(step, 40)[0][:, 0, middle, middle] for step in range(100)]
    # an image's values rise evenly, so that those of the centres must be spread evenly; b has three quarters of the pixels
    counts = np.histogram(np.concatenate(drawn), bins=np.linspace(-np.sqrt(3), np.sqrt(3), 9))[0]
    assert counts.sum() == 4000 and (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    fixed = windows.Feed(dataset, small(image_padding="nearest", shift=False), 0).make(0, 30)[0][:, 0, middle, middle]
    assert len(np.unique(fixed)) == 2


def test_weights_and_ignored_pixels(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Counts of the classes are those of the labels; ignored pixels reach the loss as such."""
    labels = tifffile.imread(files[1]) > 0
    classes = labels.astype(np.uint8) * 2
    classes[:, 40:] //= 2
    classes[:, :5] = 255
    tifffile.imwrite(tmp_path / "c.tif", classes, photometric="minisblack")
    dataset = read_matching(files[0], tmp_path / "c.tif")
    config = small(num_classes=3)
    data = windows.on_device(config, dataset)
    resident = windows.on_device(config, read_pair(files[0], tmp_path / "c.tif"))
    assert data.roles == resident.roles == ("instances", "classes", "counted")
    torch.testing.assert_close(data.class_counts, resident.class_counts)
    torch.testing.assert_close(data.class_weights, resident.class_weights)
    shares = []
    for step in range(40):
        data.load(step)
        found, _ = data.split(data.take(data.draw(2, torch.Generator()))[1])
        shares.append(float((found == IGNORED).float().mean()))
    assert 0 < np.mean(shares) < 0.3
    data.close()


def test_an_interrupted_run_goes_on_exactly(files: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = read_matching(*files)
    validation = windows.held_out_windows(dataset.subset([0]))
    for name, steps in (("whole", [6]), ("parts", [2, 6])):
        for number in steps:
            train(
                small(steps=6 if number == 6 else 2, schedule="constant", statistics_until=1.0),
                dataset.subset([1, 2]),
                validation,
                tmp_path / name,
                resume=True,
                progress=False,
            )
    first, second = (load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_validation_is_a_sample(files: tuple[Path, Path]) -> None:
    dataset, pair = read_matching(*files), read_pair(*files)
    sample = dataset.sample((32, 32), 7)
    assert len(sample) <= 7 and sample.normalized and len({name.split("[")[1] for name in sample.names}) == 3
    assert dataset.sample((70, 90), 64).images == pytest.approx(normalize(pair.images), abs=1e-6)
    held = windows.held_out_windows(dataset)
    assert held.images.shape == (3, 1, 70, 90)


def test_large_sets_stay_in_their_files(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line chooses, says why, and keeps to it when it goes on."""
    settings = ("--steps", 2, "--base-channels", 2, "--depth", 1, "--tile", 16, "--device", "cpu", "--val", 0)
    named = ("--images", files[0], "--labels", files[1])
    monkeypatch.setattr("unet_fast.train.memory.total", lambda device: 300_000)
    needed = windows.resident_bytes(read_matching(*files))
    assert needed == 3 * 70 * 90 * (2 + 4 + 2)
    said = run("train", *named, "--out", tmp_path / "large", *settings)
    assert "windows that are read from the files: 0.0 GiB are more than 25% of the memory of cpu" in said
    assert "validating on 1 windows of 70 x 90 px" in said
    monkeypatch.setattr("unet_fast.train.memory.total", lambda device: 2**40)
    assert "windows" in run("train", *named, "--out", tmp_path / "large", "--resume", *settings[:2], "--steps", 3)
    assert "windows that" not in run("train", *named, "--out", tmp_path / "small", *settings)
    error = run("train", *named, "--out", tmp_path / "large", "--resume", "--no-windows", fails=True)
    assert "cannot be changed when it is resumed" in error


def test_an_ome_zarr_with_its_labels_is_a_data_set(files: tuple[Path, Path], tmp_path: Path) -> None:
    """``--data IMAGE.zarr``: labels lie in its group ``labels``; arrays named images and labels in one group are plain pairs."""
    zarr = pytest.importorskip("zarr")
    images, labels = (tifffile.imread(file) for file in files)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    axes = [{"name": "z", "type": "space"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    group.create_array("0", data=images, chunks=(1, 32, 32))
    group.attrs["multiscales"] = scales
    cells = group.create_group("labels/cells")
    cells.create_array("0", data=labels, chunks=(1, 32, 32))
    cells.attrs["multiscales"] = scales
    group["labels"].attrs["labels"] = ["cells"]
    dataset = read_dataset(tmp_path / "a.zarr")
    assert (dataset.layout, dataset.kind, len(dataset)) == ("OME-Zarr image with labels", "instances", 3)
    pair = dataset.pair()
    np.testing.assert_array_equal(pair.images[:, 0], images)
    np.testing.assert_array_equal(pair.labels, labels)
    said = run("train", "--data", tmp_path / "a.zarr", "--windows", "--out", tmp_path / "run", "--steps", 2,
               "--base-channels", 2, "--depth", 1, "--tile", 16, "--device", "cpu", "--val", 0)  # fmt: skip
    assert "as asked for (--windows)" in said and (tmp_path / "run" / "model.safetensors").exists()
    plain = zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    plain.create_array("images", data=images, chunks=(1, 32, 32))
    plain.create_array("labels", data=labels, chunks=(1, 32, 32))
    np.testing.assert_array_equal(read_dataset(tmp_path / "b.zarr").pair([1]).labels[0], labels[1])
    group["labels"].attrs["labels"] = ["cells", "more"]
    (tmp_path / "a.zarr/labels/more").mkdir()
    (tmp_path / "a.zarr/labels/more/.zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(InputError, match=r"several labels: cells, more; name one: --images"):
        read_dataset(tmp_path / "a.zarr")


def test_rims_and_cores_of_windows(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A network that learns rims and cores gets those of the objects in each window, as wide as in the whole set."""
    config = small(kind="instances")
    assert config.separate == "cores"
    dataset = read_matching(*files)
    feed = windows.Feed(dataset, config, 0)
    assert feed.roles == ("instances", "classes")
    _, objects, classes = feed.make(0, 4)
    width = rim_width(windows._apart(windows.sampled(dataset)))
    assert classes.max() == CORE
    for shapes, found in zip(objects.numpy(), classes.numpy(), strict=True):
        # beyond the image both are mirrored; the mirror image of an object that is cut has another radius
        assert (found[shapes > 0] > 0).all() and (found[shapes == 0] <= RIM).all()
        assert (found == rims_and_cores(shapes, width, found > 0)).mean() > 0.9
    feed.close()
    summary = train(config, dataset, None, tmp_path / "run", progress=False)
    assert summary.steps == 6 and np.isfinite(summary.loss)
    assert TrainConfig.load(tmp_path / "run" / "config.json").min_size is not None
    with pytest.raises(InputError, match="needs labels that number objects, but these are classes"):
        windows.Feed(read_matching(*files, kind="classes"), config, 0)
