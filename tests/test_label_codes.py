"""What the numbers of label files mean, and that predictions beside them are read by the same rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from tests.test_data_labels import class_map, save
from unet_fast.data import Pair, detect_kind, read_dataset, read_labels, read_pair, synthetic
from unet_fast.data.label_kinds import distinct
from unet_fast.data.touching import separate_touching
from unet_fast.errors import InputError
from unet_fast.evaluate import evaluate_files
from unet_fast.notes import Note
from unet_fast.train.dataset import IGNORED, prepare


def blobs(rng: np.random.Generator, shape: tuple[int, ...] = (3, 64, 72), amount: float = 0.3) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), (0, 3, 3))
    return field > np.quantile(field, 1 - amount)


# --- every encoding of the same truth, scored against itself and against all others ---------------------------------


def write_mask(path: Path, mask: np.ndarray, how: str, rng: np.random.Generator) -> Path:
    """One mask (H, W) as a file of its own."""
    full = (mask * 255).astype(np.uint8)
    if how in ("u1_01", "u1_255", "u2_65535", "f4_01", "f8_255", "i4_07", "u1_12", "u1_128", "i1_01"):
        kind, values = how.split("_")
        low, high = {"01": (0, 1), "255": (0, 255), "65535": (0, 65535), "07": (0, 7), "12": (1, 2), "128": (0, 128)}[
            values
        ]
        array = np.where(mask, high, low).astype(kind)
        tifffile.imwrite(path.with_suffix(".tif"), array, photometric="minisblack", compression="zlib")
        return path.with_suffix(".tif")
    if how == "one bit":
        tifffile.imwrite(path.with_suffix(".tif"), mask, photometric="minisblack")
    elif how == "one bit, white is zero":
        tifffile.imwrite(path.with_suffix(".tif"), ~mask, photometric="miniswhite")
    elif how == "bytes, white is zero":
        tifffile.imwrite(path.with_suffix(".tif"), 255 - full, photometric="miniswhite")
    elif how == "rgb tiff":
        tifffile.imwrite(path.with_suffix(".tif"), np.repeat(full[..., None], 3, 2), photometric="rgb")
    if path.with_suffix(".tif").exists():
        return path.with_suffix(".tif")
    if how == "palette":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    elif how == "bit png":
        image = Image.fromarray(mask)
    elif how == "rgb png":
        image = Image.fromarray(np.repeat(full[..., None], 3, 2))
    elif how == "rgba png":
        image = Image.fromarray(np.dstack([full, full, full, np.full_like(full, 255)]), "RGBA")
    elif how == "alpha":
        image = Image.fromarray(np.dstack([np.full_like(full, 40)] * 3 + [full]), "RGBA")
    elif how == "grey and alpha":
        image = Image.fromarray(np.dstack([np.zeros_like(full), full]), "LA")
    else:
        raise AssertionError(how)
    image.save(path.with_suffix(".png"))
    return path.with_suffix(".png")


ENCODINGS = ["u1_01", "u1_255", "u2_65535", "f4_01", "f8_255", "i4_07", "u1_12", "u1_128", "i1_01", "one bit",
             "one bit, white is zero", "bytes, white is zero", "rgb tiff", "palette", "bit png", "rgb png", "rgba png",
             "alpha", "grey and alpha"]  # fmt: skip


@pytest.mark.filterwarnings("ignore::unet_fast.notes.Note")
@pytest.mark.parametrize("how", ENCODINGS)
def test_truth_against_itself_is_perfect(rng: np.random.Generator, tmp_path: Path, how: str) -> None:
    mask = blobs(rng)[0]
    one = write_mask(tmp_path / "one", mask, how, rng)
    np.testing.assert_array_equal(read_labels(one).labels[0], mask)
    other = write_mask(tmp_path / "other", mask, ENCODINGS[int(rng.integers(len(ENCODINGS)))], rng)
    wrong = write_mask(tmp_path / "wrong", ~mask, how, rng)
    for prediction, labels in ((one, one), (one, other), (other, one)):
        report = evaluate_files(prediction, labels)
        assert (report.dice, report.pixel_error, report.rand_error) == (1, 0, 0), (prediction, labels)
    assert evaluate_files(wrong, one).dice == 0


@pytest.mark.filterwarnings("ignore::unet_fast.notes.Note")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("numbers", [(0, 1, 2), (0, 1, 3, 5), (1, 2, 3), (0, 2, 7, 40), (0, 1, 2, 255)])
def test_classes_against_themselves_are_perfect(
    rng: np.random.Generator, tmp_path: Path, numbers: tuple[int, ...], dtype: str
) -> None:
    labels = np.array(numbers)[class_map(rng, len(numbers), (2, 64, 64))].astype(dtype)
    path = save(tmp_path / "c.tif", labels)
    read = read_labels(path)
    real = [n for n in numbers if n != 255]
    assert (read.kind, read.num_classes) == ("classes", max(real) + 1)
    report = evaluate_files(path, path)
    assert report.dice == 1 and report.pixel_error == 0
    shifted = np.roll(labels, 5, axis=2)
    assert evaluate_files(save(tmp_path / "s.tif", np.where(shifted == 255, 0, shifted)), path).dice < 0.95


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_instances_against_themselves_are_perfect(tmp_path: Path, dtype: str) -> None:
    instances = synthetic.nuclei(2, (128, 128), seed=4)[1]
    path = save(tmp_path / "i.tif", instances.astype(dtype))
    report = evaluate_files(path, path)
    assert (report.dice, report.seg, report.rand_error) == (1, 1, 0)


def test_a_palette_of_classes(rng: np.random.Generator, tmp_path: Path) -> None:
    labels = class_map(rng, 4, (1, 40, 44))[0]
    image = Image.fromarray(labels, "P")
    image.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(tmp_path / "p.png")
    assert evaluate_files(tmp_path / "p.png", tmp_path / "p.png").dice == 1
    image.convert("RGB").save(tmp_path / "rgb.png")
    for prediction, truth in (("rgb.png", "p.png"), ("p.png", "rgb.png")):
        with pytest.raises(InputError, match="channels that differ|colours that differ"):
            evaluate_files(tmp_path / prediction, tmp_path / truth)


def test_probabilities_stay_probabilities(rng: np.random.Generator, tmp_path: Path) -> None:
    """Bytes from 0 to 255 beside a 0/255 mask are thresholded by the scores, not by the reader."""
    mask = blobs(rng)
    probability = np.clip(ndimage.gaussian_filter(mask.astype(float), (0, 2, 2)) * 255, 0, 255).astype(np.uint8)
    labels = save(tmp_path / "l.tif", (mask * 255).astype(np.uint8))
    for name, stack in (("bytes", probability), ("floats", probability / np.float32(255))):
        report = evaluate_files(save(tmp_path / f"{name}.tif", stack), labels)
        assert 0.5 < report.dice < 1 and report.squared_difference > 0, name


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["INTER_LINEAR", "INTER_AREA", "INTER_CUBIC", "INTER_LANCZOS4"])
@pytest.mark.parametrize("objects", [1, 6])
def test_grey_rims_of_a_resized_mask(rng: np.random.Generator, tmp_path: Path, how: str, objects: int) -> None:
    stack = np.zeros((4, 130, 150), np.uint8)
    for image in stack:
        large = np.zeros((260, 300), np.uint8)
        for _ in range(objects):
            centre = (int(rng.integers(50, 250)), int(rng.integers(50, 210)))
            cv2.ellipse(
                large,
                centre,
                (int(rng.integers(14, 40)), int(rng.integers(14, 40))),
                float(rng.integers(180)),
                0,
                360,
                255,
                -1,
            )
        image[...] = cv2.resize(large, (150, 130), interpolation=getattr(cv2, how))
    assert len(np.unique(stack)) > 2
    with pytest.warns(Note, match="grey values from 0 to 255; what is above 127.5 is foreground"):
        read = read_labels(save(tmp_path / "m.tif", stack))
    assert read.kind == "mask"
    np.testing.assert_array_equal(read.labels, stack > 127)


def test_instances_are_not_taken_for_a_grey_mask(rng: np.random.Generator) -> None:
    """Not even where the last object is bright, large, and touches the others."""
    labels = np.zeros((1, 60, 60), np.uint8)
    for number, x in enumerate(range(0, 60, 10)):
        labels[0, 30:36, x : x + 8] = 60 + 30 * number
    labels[0, :30] = 255
    assert detect_kind(labels) == "instances"


def test_single_pixels_of_many_values_are_no_instances(rng: np.random.Generator) -> None:
    photograph = ndimage.gaussian_filter(rng.standard_normal((1, 40, 40)), (0, 1, 1))
    grey = ((photograph - photograph.min()) / np.ptp(photograph) * 250).astype(np.uint8)
    with pytest.raises(InputError, match="neither a mask, nor classes"):
        detect_kind(grey)


@pytest.mark.parametrize("draw", ["diagonal", "anti-diagonal", "vertical", "rim", "circle", "dots"])
def test_what_was_drawn_is_in_the_target(rng: np.random.Generator, draw: str) -> None:
    """Lines of one pixel, also diagonal ones, whose pixels touch at corners only."""
    image = np.zeros((48, 52), np.uint8)
    if draw.endswith("diagonal"):
        cv2.line(
            image,
            (4, 4) if draw == "diagonal" else (44, 4),
            (44, 44) if draw == "diagonal" else (4, 44),
            255,
            1,
            cv2.LINE_8,
        )
    elif draw == "vertical":
        image[3:40, 20] = 255
    elif draw == "rim":
        image[5:40, 5:40] = 255
        image[6:39, 6:39] = 0
    elif draw == "circle":
        cv2.circle(image, (25, 24), 15, 255, 1, cv2.LINE_8)
    else:
        image[rng.integers(0, 48, 30), rng.integers(0, 52, 30)] = 255
    pair = Pair(np.zeros((1, 1, 48, 52), np.uint8), (image > 0)[None].astype(np.uint8), "mask", 2, ["a"])
    ready = prepare(pair, torch.device("cpu"), balance=True)
    classes, _ = ready.split(ready.maps)
    np.testing.assert_array_equal(classes[0].numpy() > 0, image > 0)


def touching_pairs(labels: np.ndarray) -> int:
    """8-connected neighbours with different non-zero labels."""
    count = 0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = labels[..., dy:, max(dx, 0) : labels.shape[-1] + min(dx, 0)]
        b = labels[..., : labels.shape[-2] - dy, max(-dx, 0) : labels.shape[-1] - max(dx, 0)]
        count += int(((a > 0) & (b > 0) & (a != b)).sum())
    return count


def test_touching_objects_are_separated_without_erasing_any(rng: np.random.Generator) -> None:
    for _ in range(20):
        seeds = rng.integers(0, 40, (12, 2))
        distance = ((np.mgrid[:40, :40][None] - seeds[:, :, None, None]) ** 2).sum(1)
        labels = (distance.argmin(0) + 1)[None] * (rng.random((1, 40, 40)) < 0.97)
        labels[0, int(rng.integers(40)), :] = 50  # a line of one pixel through them all
        cut = separate_touching(labels)
        assert set(np.unique(cut)) == set(np.unique(labels)), "an object disappeared"
        assert ((cut == labels) | (cut == 0)).all()
        near = ndimage.maximum_filter(np.eye(51)[cut[0]].astype(np.uint8), (3, 3, 1))
        kept = np.take_along_axis(near, labels[0][..., None], axis=2)[..., 0]
        assert kept.all(), "a pixel without a kept pixel of its object beside it"
        assert (cut[0] == 50).sum() == (labels[0] == 50).sum(), "the thin line is whole"
    thick = np.kron(rng.integers(1, 9, (1, 6, 6)), np.ones((1, 5, 5), int))
    assert touching_pairs(thick) > 0 and touching_pairs(separate_touching(thick)) == 0


def test_masks_of_one_and_two(rng: np.random.Generator, tmp_path: Path) -> None:
    mask = blobs(rng)
    with pytest.warns(Note, match="values 1 and 2 the larger is taken as the foreground"):
        read = read_labels(save(tmp_path / "m.tif", np.where(mask, 2, 1).astype(np.uint8)))
    np.testing.assert_array_equal(read.labels, mask)
    # images of other sizes, of which some hold background only, mean the same by the same number
    (tmp_path / "d" / "images").mkdir(parents=True)
    (tmp_path / "d" / "masks").mkdir()
    sizes = {"a": (20, 24), "b": (20, 24), "c": (30, 24), "e": (12, 50)}
    for name, size in sizes.items():
        inside = np.zeros(size, bool) if name in "ce" else rng.random(size) < 0.4
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / "d" / "images" / f"{name}.png")
        Image.fromarray(np.where(inside, 2, 1).astype(np.uint8)).save(tmp_path / "d" / "masks" / f"{name}.png")
    with pytest.warns(Note, match="the larger is taken"):
        items = {item.name: item.label for item in read_dataset(tmp_path / "d").items}
    assert items["a"].any() and not items["c"].any() and not items["e"].any()


# --- ignored pixels, gaps, large numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(("void", "dtype"), [(255, "uint8"), (65535, "uint16"), (255, "int32")])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_void_rims_count_nowhere(rng: np.random.Generator, tmp_path: Path, classes: int, void: int, dtype: str) -> None:
    labels = class_map(rng, classes, (3, 64, 64)).astype(dtype)
    rim = np.zeros(labels.shape, bool)
    rim[:, 20:22], rim[:, :, 40:42] = True, True
    labels[rim] = void
    images = save(tmp_path / "i.tif", rng.integers(0, 255, labels.shape, dtype=np.uint8))
    with pytest.warns(Note, match=f"{void} beside the labels .* is taken as ignored"):
        pair = read_pair(images, save(tmp_path / "l.tif", labels))
    assert pair.num_classes == classes and pair.ignored is not None
    np.testing.assert_array_equal(pair.ignored, rim)
    assert not pair.labels[rim].any()
    ready = prepare(pair, torch.device("cpu"), balance=True)
    target, _ = ready.split(ready.maps)
    np.testing.assert_array_equal(target.numpy() == IGNORED, rim)
    np.testing.assert_array_equal(target.numpy()[~rim], labels[~rim])


def test_an_ignore_index_that_is_named(rng: np.random.Generator, tmp_path: Path) -> None:
    labels = class_map(rng, 3, (2, 64, 64)).astype(np.int16)
    labels[:, 5:9] = -1
    path = save(tmp_path / "l.tif", labels)
    with pytest.raises(InputError, match=r"negative label -1; .* ignore_index=-1 \(--ignore-index\)"):
        read_labels(path)
    read = read_labels(path, ignore_index=-1)
    assert (read.kind, read.num_classes) == ("classes", 3) and read.ignored is not None
    np.testing.assert_array_equal(read.ignored, labels == -1)
    labels[labels == -1] = 2
    with pytest.raises(InputError, match="nothing but the ignored label 7"):
        read_labels(save(tmp_path / "v.tif", np.full((1, 8, 8), 7, np.uint8)), ignore_index=7)
    instances = synthetic.nuclei(3, (128, 128), seed=2)[1]
    read = read_labels(save(tmp_path / "i.tif", instances.astype(np.uint16)), ignore_index=1)
    assert read.kind == "instances" and read.ignored is not None
    np.testing.assert_array_equal(read.ignored, instances == 1)


def test_a_mask_with_stray_pixels_is_not_guessed(rng: np.random.Generator, tmp_path: Path) -> None:
    mask = (blobs(rng) * 255).astype(np.uint8)
    mask[0, 3, 4] = 1
    path = save(tmp_path / "m.tif", mask)
    with pytest.raises(InputError, match=r"a mask with 1 stray pixels, or .*--label-kind mask.*--ignore-index 255"):
        read_labels(path)
    with pytest.warns(Note, match="what is above 127.5 is foreground"):
        np.testing.assert_array_equal(read_labels(path, "mask").labels, mask > 127)
    assert read_labels(path, ignore_index=255).ignored is not None


def test_gaps_in_the_numbers_train(rng: np.random.Generator, tmp_path: Path) -> None:
    labels = np.array([0, 2, 5])[class_map(rng, 3, (3, 64, 64))].astype(np.uint8)
    images = save(tmp_path / "i.tif", rng.integers(0, 255, labels.shape, dtype=np.uint8))
    with pytest.warns(Note, match=r"the classes 1, 3, 4 occur nowhere, only 0, 2, 5; .* has 6 classes"):
        pair = read_pair(images, save(tmp_path / "l.tif", labels))
    ready = prepare(pair, torch.device("cpu"), balance=True)
    weights = ready.class_weights.numpy()
    assert ready.num_classes == 6 and (weights[[1, 3, 4]] == 0).all() and np.isfinite(weights).all()
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-5)


@pytest.mark.parametrize("largest", [1024, 70000, 10**9, 2**31])
def test_class_numbers_beyond_reason(tmp_path: Path, largest: int) -> None:
    labels = np.zeros((1, 30, 30), np.uint32)
    labels[0, :5], labels[0, 10:20] = 1, largest
    with pytest.raises(
        InputError, match=f"up to {largest}, but a network has a channel for each number, at most 1024"
    ) as error:
        read_labels(save(tmp_path / "c.tif", labels), "classes")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("colour", ["other", "same"])
def test_transparency_that_hides_labels(rng: np.random.Generator, tmp_path: Path, colour: str) -> None:
    mask = blobs(rng)[0].astype(np.uint8)
    alpha = np.zeros_like(mask)
    alpha[:30] = 255
    shown = np.where(alpha > 0, mask, mask if colour == "other" else 0).astype(np.uint8)
    Image.fromarray(np.dstack([shown * 255, alpha]), "LA").save(tmp_path / "l.png")
    if colour == "same":
        np.testing.assert_array_equal(read_labels(tmp_path / "l.png").labels[0], shown)
    else:
        with pytest.raises(InputError, match="its colours and its alpha say different things; flatten it"):
            read_labels(tmp_path / "l.png")


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_files_pair_page_by_page(rng: np.random.Generator, tmp_path: Path) -> None:
    counts = {"A": (3, 2), "B": (2, 3)}
    for name, (images, labels) in counts.items():
        for folder, count in (("images", images), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            stack = (blobs(rng, (count, 20, 24)) * 255).astype(np.uint8)
            save(tmp_path / folder / f"{name}.tif", stack)
    for read in (lambda: read_pair(tmp_path / "images", tmp_path / "labels"), lambda: read_dataset(tmp_path)):
        with pytest.raises(InputError, match=r"images.A\.tif holds 3 images, its labels .*labels.A\.tif hold 2"):
            read()


def test_pairs_by_order_are_shown(rng: np.random.Generator, tmp_path: Path) -> None:
    for folder, names in (("i", ("one", "two", "three")), ("l", ("x", "y", "z"))):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray((blobs(rng)[0] * 255).astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    with pytest.warns(
        Note, match=r"paired by their order, which may be wrong: one\.png and x\.png, three\.png and y\.png"
    ):
        read_pair(tmp_path / "i", tmp_path / "l")


@pytest.mark.filterwarnings("ignore::unet_fast.notes.Note")
def test_neighbouring_slices_share_memory_and_dtype(rng: np.random.Generator, tmp_path: Path) -> None:
    stack = rng.integers(0, 65535, (6, 20, 24), dtype=np.uint16)
    labels = (blobs(rng, (6, 20, 24)) * 255).astype(np.uint8)
    pair = read_pair(save(tmp_path / "i.tif", stack), save(tmp_path / "l.tif", labels))
    assert pair.images.dtype == np.uint16 and pair.labels.dtype == np.uint8
    assert np.shares_memory(pair.select([1, 2, 3]).images, pair.images)
    np.testing.assert_array_equal(pair.select([4, 1]).images[:, 0], stack[[4, 1]])
    assert pair.select(range(2, 5)).names == pair.names[2:5]


def test_a_report_of_ignored_pixels(rng: np.random.Generator, tmp_path: Path) -> None:
    """What is predicted where the labels are void changes no score."""
    labels = class_map(rng, 3, (2, 48, 48))
    labels[:, :6] = 255
    predicted: Any = np.where(labels == 255, 1, labels).astype(np.uint8)
    truth = save(tmp_path / "l.tif", labels)
    with pytest.warns(Note, match="taken as ignored"):
        report = evaluate_files(save(tmp_path / "p.tif", predicted), truth, out=tmp_path / "m.json")
    assert report.dice == 1 and json.loads((tmp_path / "m.json").read_text())["pixel_error"] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int8, np.uint16])
@pytest.mark.parametrize("values", [[0], [1], [0, 1], [1, 0, 1], [0, 1, 100], [3, 7, 9, 120]])
def test_distinct_values(rng: np.random.Generator, values: list[int], dtype: type) -> None:
    drawn = rng.choice(np.array(values, dtype), (2, 5, 6))
    drawn[1, 0, : len(values)] = values
    assert distinct([drawn[:1], drawn[1:], drawn[:, :0]]).tolist() == sorted(np.unique(drawn).tolist())
