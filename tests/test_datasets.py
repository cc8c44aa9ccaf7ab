"""Each layout of a data set, read from a small generated tree; what is no such tree; images of several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unet_fast import data
from unet_fast.data import Pair, read_dataset
from unet_fast.data.datasets import ItemPages, choose, find_items
from unet_fast.errors import InputError
from unet_fast.nn import losses
from unet_fast.train import default_config, train
from unet_fast.train.dataset import IGNORED, prepare
from unet_fast.train.validation import validate


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.shape[-1] == 3 else "minisblack")
    else:
        Image.fromarray(array).save(path)


def grey(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


def cells(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Six separate squares, numbered 1 to 6."""
    labels = np.zeros((height, width), np.uint16)
    for number, place in enumerate(rng.permutation(6), start=1):
        y, x = divmod(int(place), 3)
        labels[y * 10 + 1 : y * 10 + 8, x * 10 + 1 : x * 10 + 8] = number
    return labels


def test_isbi_stacks(tmp_path, rng):
    images, labels = grey(rng, 5, 20, 24), np.where(rng.random((5, 20, 24)) < 0.7, 255, 0).astype(np.uint8)
    write(tmp_path / "train-volume.tif", images)
    write(tmp_path / "train-labels.tif", labels)
    write(tmp_path / "test-volume.tif", images)
    dataset = read_dataset(tmp_path)
    pair = dataset.pair()
    assert (dataset.layout, dataset.kind, len(dataset)) == ("ISBI 2012 stacks", "mask", 5)
    np.testing.assert_array_equal(pair.images[:, 0], images)
    np.testing.assert_array_equal(pair.labels, labels == 255)
    assert pair.ignored is None
    np.testing.assert_array_equal(dataset.pair([3]).images[0, 0], images[3])


def test_cell_tracking_sequences(tmp_path, rng):
    frames = {("01", 0): "_GT", ("01", 2): "_ST", ("02", 1): "_ST"}
    truth = {}
    for sequence in ("01", "02"):
        for frame in range(3):
            write(tmp_path / sequence / f"t{frame:03d}.tif", grey(rng, 24, 32))
    for (sequence, frame), suffix in frames.items():
        truth[sequence, frame] = cells(rng, 24, 32)
        write(tmp_path / f"{sequence}{suffix}" / "SEG" / f"man_seg{frame:03d}.tif", truth[sequence, frame])
    # where both exist the gold truth counts
    write(tmp_path / "01_ST" / "SEG" / "man_seg000.tif", cells(rng, 24, 32)[::-1].copy())
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.names) == ("instances", ["01/t000", "01/t002", "02/t001"])
    np.testing.assert_array_equal(dataset.pair().labels, np.stack(list(truth.values())))
    stored = tifffile.imread(tmp_path / "01" / "t002.tif")
    np.testing.assert_array_equal(dataset.pair().images[1, 0], stored)
    assert dataset.choose("sequence:02") == [2]
    with pytest.raises(InputError, match="no sequence '03'; sequences of this data: 01, 02"):
        dataset.choose("sequence:03")
    (tmp_path / "01" / "t002.tif").unlink()
    with pytest.raises(InputError, match=r"man_seg002.tif labels frame 2, but .*01 holds no t002.tif"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("folder", ["", "training"])
def test_drive_field_of_view(tmp_path, rng, folder):
    root = tmp_path / folder
    vessels, fields = {}, {}
    for number in (21, 22, 23):
        vessels[number] = np.where(rng.random((30, 28)) < 0.2, 255, 0).astype(np.uint8)
        fields[number] = np.zeros((30, 28), np.uint8)
        fields[number][4:26, 3:25] = 255
        write(root / "images" / f"{number}_training.tif", grey(rng, 30, 28, 3))
        write(root / "1st_manual" / f"{number}_manual1.gif", vessels[number])
        write(root / "mask" / f"{number}_training_mask.gif", fields[number])
    dataset = read_dataset(tmp_path)
    pair = dataset.pair()
    assert (dataset.layout, dataset.kind, pair.images.shape) == ("DRIVE", "mask", (3, 3, 30, 28))
    np.testing.assert_array_equal(pair.labels, np.stack(list(vessels.values())) == 255)
    assert pair.ignored is not None
    np.testing.assert_array_equal(pair.ignored, np.stack(list(fields.values())) == 0)
    (root / "mask" / "22_training_mask.gif").unlink()
    with pytest.raises(InputError, match="22_training.tif has no field of view"):
        read_dataset(tmp_path)


def test_science_bowl_folders_of_several_sizes(tmp_path, rng):
    sizes = {"a": (24, 32), "b": (24, 32), "c": (30, 70), "d": (20, 32)}
    truth = {}
    for name, size in sizes.items():
        truth[name] = cells(rng, *size) if name != "d" else cells(rng, 24, 32)[:20]
        image = np.repeat(grey(rng, *size)[..., None], 3, axis=2)
        alpha = np.full((*size, 1), 255, np.uint8)
        write(tmp_path / name / "images" / f"{name}.png", np.concatenate([image, alpha], 2))
        for number in np.unique(truth[name])[1:]:
            mask = np.where(truth[name] == number, 255, 0).astype(np.uint8)
            write(tmp_path / name / "masks" / f"{number:04d}.png", mask)
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.names, dataset.size) == ("instances", list("abcd"), (24, 32))
    pair = dataset.pair()
    assert pair.images.shape[1:] == (1, 24, 32), "colour images with equal channels are grey"
    np.testing.assert_array_equal(pair.labels[0] > 0, truth["a"] > 0)
    assert len(np.unique(pair.labels[0])) == 7
    # the larger image is covered by its pieces, the smaller one continued, and only there ignored
    covered = np.zeros(sizes["c"], bool)
    whole = dataset.items[2]
    for index, name in enumerate(pair.names):
        if name.startswith("c["):
            y, x = map(int, name[2:-1].split(","))
            covered[y : y + 24, x : x + 32] = True
            np.testing.assert_array_equal(pair.labels[index], whole.label[y : y + 24, x : x + 32])
            np.testing.assert_array_equal(pair.images[index], whole.image[:, y : y + 24, x : x + 32])
    assert covered.all()
    assert pair.ignored is not None and pair.ignored[-1, 20:].all()
    assert pair.ignored.sum() == 4 * 32
    assert pair.labels[-1, 20:].max() == 0


@pytest.mark.parametrize("labels_name", ["labels", "masks", "instances"])
def test_plain_pairs(tmp_path, rng, labels_name):
    for name in ("x1", "x2", "x10"):
        write(tmp_path / "images" / f"{name}.png", grey(rng, 24, 32))
        write(tmp_path / labels_name / f"{name}.tif", cells(rng, 24, 32))
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.kind, dataset.names) == ("plain pairs", "instances", ["x1", "x2", "x10"])
    stored = tifffile.imread(tmp_path / labels_name / "x10.tif")
    np.testing.assert_array_equal(dataset.pair([2]).labels[0], stored)
    assert read_dataset(tmp_path, kind="classes").num_classes == 7


def test_plain_stacks_and_several_sizes_of_classes(tmp_path, rng):
    write(tmp_path / "stack" / "images.tif", grey(rng, 3, 9, 8))
    write(tmp_path / "stack" / "masks.tif", (rng.random((3, 9, 8)) < 0.5).astype(np.uint8))
    assert len(read_dataset(tmp_path / "stack")) == 3
    for name, size, classes in (("a", (20, 20), 3), ("b", (20, 20), 2), ("c", (11, 40), 4)):
        write(tmp_path / "mixed" / "images" / f"{name}.png", grey(rng, *size))
        label = rng.integers(0, classes, size).astype(np.uint8)
        label.flat[:classes] = np.arange(classes)
        write(tmp_path / "mixed" / "labels" / f"{name}.png", label)
    dataset = read_dataset(tmp_path / "mixed")
    assert (dataset.kind, dataset.num_classes, dataset.size) == ("classes", 4, (20, 20))
    assert len(dataset.pair()) == 4  # 40 pixels make two pieces of 20


def test_other_folders_are_refused_with_all_trees(tmp_path, rng):
    write(tmp_path / "picture.png", grey(rng, 5, 5))
    with pytest.raises(InputError) as error:
        read_dataset(tmp_path)
    for word in ("train-volume.tif", "01_GT/SEG/man_seg000.tif", "1st_manual", "ID/masks/*.png", "labels/"):
        assert word in str(error.value)
    with pytest.raises(InputError, match="is a file, expected a folder"):
        read_dataset(tmp_path / "picture.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_dataset(tmp_path / "nothing")
    write(tmp_path / "images" / "a.png", grey(rng, 6, 5))
    write(tmp_path / "masks" / "a.png", grey(rng, 5, 5))
    with pytest.raises(InputError, match=r"a.png is 6 x 5 but .*a.png is 5 x 5"):
        read_dataset(tmp_path)


def ignoring(rng: np.random.Generator, num_classes: int = 2) -> Pair:
    labels = rng.integers(0, num_classes, (3, 40, 44)).astype(np.int32)
    ignored = np.zeros(labels.shape, bool)
    ignored[:, :, 20:] = True
    images = rng.random((3, 1, 40, 44), dtype=np.float32)
    kind = "mask" if num_classes == 2 else "classes"
    return Pair(images, labels, kind, num_classes, list("abc"), ignored)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_ignored_pixels_weigh_nothing(rng, num_classes):
    pair = ignoring(rng, num_classes)
    pair.labels[..., 18:20] = 0  # what touches the ignored part would be cut from it
    changed = Pair(
        pair.images, np.where(pair.ignored, 1, pair.labels), pair.kind, num_classes, pair.names, pair.ignored
    )
    first, second = (prepare(each, torch.device("cpu"), balance=True) for each in (pair, changed))
    assert torch.equal(first.class_weights, second.class_weights)
    classes, _ = first.split(first.maps)
    np.testing.assert_array_equal(classes.numpy() == IGNORED, pair.ignored)
    if num_classes > 2:  # of a mask, components that touch were separated
        np.testing.assert_array_equal(classes.numpy()[~pair.ignored], pair.labels[~pair.ignored])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_ignored_pixels_are_not_scored(rng, channels):
    pair = ignoring(rng, max(channels, 2))
    probabilities = rng.dirichlet(np.ones(max(channels, 2)), pair.labels.shape).transpose(0, 3, 1, 2)
    probabilities = probabilities[:, -channels:].astype(np.float32)
    elsewhere = probabilities.copy()
    elsewhere[..., 20:] = elsewhere[..., ::-1, 20:]
    loss = losses.BCEWithLogitsLoss() if channels == 1 else losses.FocalLoss()
    assert validate(probabilities, pair, loss) == validate(elsewhere, pair, loss)
    # and cutting them off gives the same scores; instances end at the cut in both
    cut = Pair(pair.images[..., :20], pair.labels[..., :20], pair.kind, pair.num_classes, pair.names)
    a, b = validate(probabilities, pair, loss), validate(probabilities[..., :20], cut, loss)
    assert (a.loss, a.pixel_error, a.dice) == pytest.approx((b.loss, b.pixel_error, b.dice), rel=1e-5)


def test_training_with_ignored_pixels(rng, tmp_path):
    config = default_config("cpu", steps=3, base_channels=2, depth=1, tile=24, amp=False)
    summary = train(config, ignoring(rng), ignoring(rng), tmp_path / "run", progress=False)
    assert np.isfinite(summary.loss) and summary.validation is not None


def test_the_real_sets_are_recognised(real_data):
    for name, layout in (("isbi2012", "ISBI 2012 stacks"), ("dic-hela", "plain pairs")):
        dataset = read_dataset(real_data / name)
        assert dataset.layout == layout
        assert dataset.pair([0]).images.shape == (1, 1, 512, 512)
    assert data.read_dataset(real_data / "dsb2018-he256x320").pair([0]).images.shape == (1, 3, 256, 320)


def test_images_to_predict_are_read_in_windows_and_their_labels_not_at_all(tmp_path, rng, monkeypatch):
    images = [rng.integers(0, 4000, size, dtype=np.uint16) for size in ((96, 80), (40, 50))]
    for name, image in zip("ab", images, strict=True):
        write(tmp_path / "images" / f"{name}.tif", image)
        write(tmp_path / "labels" / f"{name}.tif", rng.normal(size=image.shape).astype(np.float32))  # no labels
    _, _, items = find_items(tmp_path)
    pages = ItemPages([items[index] for index in choose(items, "1,0")])
    assert (pages.names, [pages.shape(n) for n in range(2)]) == (["b", "a"], [(1, 40, 50), (1, 96, 80)])
    assert pages.files == [tmp_path / "images" / "b.tif", tmp_path / "images" / "a.tif"]
    assert pages.place(1) == (tmp_path / "images" / "a.tif", 0) and pages.dtype(0) == np.uint16
    monkeypatch.setattr(data.Pages, "__getitem__", lambda *_: pytest.fail("the whole image was read"))
    np.testing.assert_array_equal(pages.window(1, (7, 30), (20, 33)), images[0][None, 7:27, 30:63])
