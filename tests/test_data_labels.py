"""Label kinds, class maps and instance maps, and images paired with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from unet_fast.data import (
    detect_kind,
    match_files,
    read_images,
    read_labels,
    read_pair,
    synthetic,
    to_classes,
    to_instances,
)
from unet_fast.errors import InputError, InputTypeError

pytestmark = pytest.mark.core


def save(path: Path, stack: np.ndarray) -> Path:
    tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
    return path


def class_map(rng: np.random.Generator, classes: int, shape: tuple[int, ...] = (3, 64, 64)) -> np.ndarray:
    """Scattered regions of several classes."""
    fields = ndimage.gaussian_filter(rng.standard_normal((classes, *shape)), (0, 0, 3, 3))
    return np.argmax(fields, axis=0).astype(np.uint8)


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 65535), (0, 2), (1, 2)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_masks(rng: np.random.Generator, tmp_path: Path, values: tuple[int, int], dtype: str) -> None:
    mask = rng.random((3, 20, 17)) < 0.5
    read = read_labels(save(tmp_path / "m.tif", np.where(mask, values[1], values[0]).astype(dtype)))
    assert (read.kind, read.num_classes, read.labels.dtype) == ("mask", 2, np.uint8)
    np.testing.assert_array_equal(read.labels, mask)
    assert read.names == ["m[0]", "m[1]", "m[2]"]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 1), (1, 1)])
def test_constant_masks(tmp_path: Path, value: int, expected: int) -> None:
    read = read_labels(save(tmp_path / "m.tif", np.full((2, 5, 5), value, np.uint8)))
    assert read.kind == "mask" and (read.labels == expected).all()


@pytest.mark.parametrize("classes", [3, 5, 9])
def test_classes(rng: np.random.Generator, tmp_path: Path, classes: int) -> None:
    labels = class_map(rng, classes)
    read = read_labels(save(tmp_path / "c.tif", labels))
    assert (read.kind, read.num_classes) == ("classes", classes)
    np.testing.assert_array_equal(read.labels, labels)
    assert read_labels(tmp_path / "c.tif", num_classes=classes + 2).num_classes == classes + 2
    if classes >= 5:
        assert read_labels(tmp_path / "c.tif", kind="instances").kind == "instances"


@pytest.mark.parametrize("maker", [synthetic.nuclei, synthetic.membranes])
def test_instances(tmp_path: Path, maker: object) -> None:
    instances = maker(3, (128, 160), seed=5)[1]  # type: ignore[operator]
    read = read_labels(save(tmp_path / "i.tif", instances.astype(np.uint16)))
    assert (read.kind, read.num_classes) == ("instances", 2)
    np.testing.assert_array_equal(read.labels, instances)


def test_instances_of_which_some_are_in_pieces(rng: np.random.Generator) -> None:
    labels = np.zeros((1, 60, 60), np.int32)
    for number in range(1, 21):
        y, x = divmod(number - 1, 5)
        labels[0, 12 * y : 12 * y + 8, 12 * x : 12 * x + 8] = 1000 * number
        if number % 3 == 0:
            labels[0, 12 * y + 3, 12 * x : 12 * x + 8] = 0
    assert detect_kind(labels) == "instances"


def test_few_objects_are_classes_unless_told() -> None:
    labels = np.zeros((1, 9, 9), np.int32)
    labels[0, :3], labels[0, 3:6], labels[0, 7:] = 1, 2, 3
    assert detect_kind(labels) == "classes"


def test_large_instance_numbers(tmp_path: Path) -> None:
    labels = np.zeros((1, 4, 30), np.uint32)
    numbers = np.array([7, 2**31, 2**32 - 1, 2**32 - 2, 12, 40], np.uint32)
    labels[0, 1:3, ::5] = numbers
    read = read_labels(save(tmp_path / "i.tif", labels))
    assert read.kind == "instances" and read.labels.dtype == np.int32
    assert (read.labels > 0).sum() == (labels > 0).sum()
    np.testing.assert_array_equal(read.labels[0, 1, ::5], np.searchsorted(np.sort(numbers), numbers) + 1)


def test_real_kinds(real_data: Path) -> None:
    kinds = {
        "isbi2012/train-labels.tif": "mask",
        "dic-hela/semantic-foreground.tif": "mask",
        "dic-hela/instances.tif": "instances",
        "phc-u373/instances.tif": "instances",
        "usiigaci/instances.tif": "instances",
        "dsb2018-fluo256/instances.tif": "instances",
        "dsb2018-fluo520/instances.tif": "instances",
        "dsb2018-he256x320/instances.tif": "instances",
    }
    assert {path: read_labels(real_data / path).kind for path in kinds} == kinds
    with pytest.raises(InputError, match=r"256 different labels .*check that this is the label file"):
        read_labels(real_data / "isbi2012/train-volume.tif")


def test_real_pair(real_data: Path) -> None:
    pair = read_pair(real_data / "isbi2012/train-volume.tif", real_data / "isbi2012/train-labels.tif")
    assert len(pair) == 25 and pair.kind == "mask" and pair.num_classes == 2
    assert pair.images[:, 0][pair.labels == 0].mean() < pair.images[:, 0][pair.labels == 1].mean() - 40
    part = pair.select([20, 24])
    np.testing.assert_array_equal(part.labels, pair.labels[[20, 24]])
    assert part.names == ["train-volume[20]", "train-volume[24]"] and part.kind == "mask"


def test_indexed_and_grey_colour_pngs(rng: np.random.Generator, tmp_path: Path) -> None:
    """Palette indices are the labels, whatever colours they are shown in; RGB is fine where its channels agree."""
    labels = class_map(rng, 4, (1, 40, 30))[0]
    indexed = Image.fromarray(labels, "P")
    indexed.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    for folder in ("indexed", "rgb", "four_bit"):
        (tmp_path / folder).mkdir()
    indexed.save(tmp_path / "indexed" / "a.png")
    Image.fromarray(np.repeat(labels[..., None], 3, axis=2)).save(tmp_path / "rgb" / "a.png")
    indexed.save(tmp_path / "four_bit" / "a.png", bits=4)
    for folder in ("indexed", "rgb", "four_bit"):
        np.testing.assert_array_equal(read_labels(tmp_path / folder).labels[0], labels)
    assert read_images(tmp_path / "indexed" / "a.png").shape == (1, 3, 40, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.where(a == 2, np.nan, a), "holds the label nan, expected whole numbers"),
        (lambda a: np.where(a == 2, np.inf, a), "holds the label inf, expected whole numbers"),
        (
            lambda a: np.where(a == 2, 0.5, a),
            r"slice 1 \(l\[1\]\) .* holds the label 0.5, expected whole numbers; thresh",
        ),
        (
            lambda a: np.where(a == 2, -1, a).astype(np.int16),
            r"slice 1 \(l\[1\]\).* the negative label -1; labels count",
        ),
        (lambda a: np.where(a == 2, 128, a).astype(np.uint8), r"labels \(0, 1, 128\).*renumber the classes"),
        (lambda a: np.stack([a, a.T.reshape(a.shape)], 1).astype(np.uint8), "have 2 channels that differ"),
        (lambda a: a + 1j, r"complex values \(complex128\)"),
    ],
)
def test_bad_labels(rng: np.random.Generator, tmp_path: Path, change: object, message: str) -> None:
    labels = (class_map(rng, 2) == 1).astype(np.float64)
    labels[1, 5:9, 5:9] = 2
    bad = change(labels)  # type: ignore[operator]
    tifffile.imwrite(tmp_path / "l.ome.tif", bad, photometric="minisblack", metadata={"axes": "ZCYX"[-bad.ndim :]})
    if bad.ndim == 3:
        tifffile.imwrite(tmp_path / "l.tif", bad, photometric="minisblack")
    path = tmp_path / ("l.tif" if bad.ndim == 3 else "l.ome.tif")
    with pytest.raises(InputError, match=message) as error:
        read_labels(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_labels_outside_the_classes(rng: np.random.Generator, tmp_path: Path) -> None:
    labels = np.minimum(class_map(rng, 4), 2)
    labels[2, 3, 3] = 7
    path = save(tmp_path / "c.tif", labels)
    with pytest.raises(
        InputError, match=r"slice 2 \(c\[2\]\).*label 7, outside the classes 0 to 2; give num_classes=8"
    ):
        read_labels(path, num_classes=3)
    with pytest.raises(InputError, match="label 7, outside the classes 0 to 1"):
        read_labels(path, num_classes=2)
    with pytest.raises(InputError, match=r"c\.tif holds 4 different values \(0, 1, 2, 7\), expected two"):
        read_labels(path, kind="mask")
    with pytest.raises(InputError, match="num_classes is 3, but labels of kind 'instances' have 2"):
        read_labels(path, kind="instances", num_classes=3)
    with pytest.raises(InputError, match="num_classes is 1, expected at least 2"):
        read_labels(path, num_classes=1)
    with pytest.raises(InputError, match="kind is 'masks', expected one of 'mask', 'classes', 'instances'"):
        read_labels(path, kind="masks")  # type: ignore[arg-type]


def test_to_classes(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 5, (2, 9, 8)).astype(np.uint16)
    assert to_classes(labels, "classes").dtype == np.int64
    np.testing.assert_array_equal(to_classes(labels, "classes"), labels)
    np.testing.assert_array_equal(to_classes(labels * 60, "mask"), labels > 0)
    np.testing.assert_array_equal(to_classes(labels, "instances"), labels > 0)
    np.testing.assert_array_equal(to_classes(labels > 2, "mask"), labels > 2)


@pytest.mark.parametrize("shape", [(3, 31, 17), (1, 1, 1), (2, 1, 9), (0, 4, 4)])
def test_to_instances(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    mask = rng.random(shape) < 0.5
    out = to_instances(mask[:, ::-1], "mask")
    assert out.dtype == np.int32 and out.shape == shape
    for image, expected in zip(out, mask[:, ::-1], strict=True):
        np.testing.assert_array_equal(image, ndimage.label(expected)[0])
    classes = rng.integers(0, 4, shape)
    out = to_instances(classes, "classes")
    for image, source in zip(out, classes, strict=True):
        np.testing.assert_array_equal(image > 0, source > 0)
        count = 0
        for value in (1, 2, 3):
            parts, number = ndimage.label(source == value)
            count += number
            for part in range(1, number + 1):
                assert len(np.unique(image[parts == part])) == 1
        assert len(np.unique(image[image > 0])) == count
    np.testing.assert_array_equal(to_instances(classes, "instances"), classes)


def test_conversions_refuse(rng: np.random.Generator) -> None:
    for convert in (to_classes, to_instances):
        with pytest.raises(InputError, match=r"2 dimensions, shape \(3, 3\); expected \(N, H, W\)"):
            convert(np.zeros((3, 3), int), "mask")
        with pytest.raises(InputTypeError, match="labels have dtype float64, expected integers"):
            convert(np.zeros((1, 3, 3)), "mask")
        with pytest.raises(InputError, match="kind is 'x'"):
            convert(np.zeros((1, 3, 3), int), "x")  # type: ignore[arg-type]


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    images = save(tmp_path / "i.tif", np.zeros((4, 8, 8), np.uint8))
    short = save(tmp_path / "short.tif", np.zeros((3, 8, 8), np.uint8))
    small = save(tmp_path / "small.tif", np.zeros((4, 8, 7), np.uint8))
    with pytest.raises(InputError, match=r"length: .*i\.tif has shape \(4, 1, 8, 8\) and .*short.tif .*\(3, 1, 8, 8\)"):
        read_pair(images, short)
    with pytest.raises(InputError, match=r"size: .*i\.tif has shape \(4, 1, 8, 8\) and .*small.tif .*\(4, 1, 8, 7\)"):
        read_pair(images, small)
    with pytest.raises(InputError, match=r"images and labels are both .*i\.tif"):
        read_pair(images, images)
    with pytest.raises(FileNotFoundError, match=r"none\.tif does not exist"):
        read_pair(images, tmp_path / "none.tif")


@pytest.mark.parametrize("single", [False, True])
def test_folder_pairs(rng: np.random.Generator, tmp_path: Path, single: bool) -> None:
    """Image files against label files in another order, or against one label stack."""
    images, masks = rng.integers(0, 255, (12, 6, 5), np.uint8), rng.integers(0, 2, (12, 6, 5), np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index in range(12):
        Image.fromarray(images[index]).save(tmp_path / "images" / f"cell{index}_img.png")
        tifffile.imwrite(tmp_path / "masks" / f"Cell{index}_Mask.tif", masks[index])
    labels = save(tmp_path / "masks.tif", masks) if single else tmp_path / "masks"
    pair = read_pair(tmp_path / "images", labels)
    np.testing.assert_array_equal(pair.images[:, 0], images)
    np.testing.assert_array_equal(pair.labels, masks)
    assert pair.names[10] == "cell10_img"


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        ("b.png a.png", "a.tif b.tif", "b.tif a.tif"),
        ("a_img.png b_img.png", "b_mask.png a_mask.png", "a_mask.png b_mask.png"),
        ("img_a.png img_b.png", "label-b.png label-a.png", "label-a.png label-b.png"),
        ("a.png b.png", "b_cp_masks.png a_cp_masks.png", "a_cp_masks.png b_cp_masks.png"),
        ("t007.tif t010.tif", "man_seg010.tif man_seg007.tif", "man_seg007.tif man_seg010.tif"),
        ("img1.png img10.png", "mask10.png mask1.png", "mask1.png mask10.png"),
        ("mask_s_3.png mask_s_4.png", "mask_s_4_seg.png mask_s_3_seg.png", "mask_s_3_seg.png mask_s_4_seg.png"),
        ("3_x.png 04_x.png", "y4.png y3.png", "y3.png y4.png"),
        ("x.png y.png", "q.png p.png", "p.png q.png"),
    ],
)
def test_match_files(images: str, labels: str, expected: str) -> None:
    matched = match_files([Path("i") / name for name in images.split()], [Path("l") / name for name in labels.split()])
    assert [file.name for file in matched] == expected.split()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["a.png", "b.png"], ["a.png", "c.png"], r"2 image and 2 label .* the image i/b\.png has no label; name"),
        (["a.png", "b.png"], ["a.png", "b.png", "c.png", "d.png"], r"label l/c\.png has no image \(nor have 1 more\)"),
        (["img1.png", "img2.png"], ["mask2.png", "mask3.png"], r"image i/img1\.png has no label"),
        (["s1.png", "s2.png"], ["q5.png", "q6.png"], r"image i/s1\.png has no label \(nor have 1 more\)"),
        (["x.png", "y.png"], ["q.png", "p.png", "r.png"], r"2 image and 3 label files do not match"),
    ],
)
def test_match_files_fails(images: list[str], labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_files([Path("i") / name for name in images], [Path("l") / name for name in labels])
