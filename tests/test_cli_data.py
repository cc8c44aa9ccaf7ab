"""The command line on folders of data sets: every verb takes --data, fields of view count, sizes may differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.test_cli import run
from unet_fast import data, metrics
from unet_fast.data import synthetic
from unet_fast.evaluate import evaluate


def science_bowl(root: Path, sizes: list[tuple[int, int]], masks: bool = True) -> None:
    """``root/ID/images/ID.png`` in RGBA with equal colours, and ``root/ID/masks/*.png``, as they come."""
    for number, size in enumerate(sizes):
        images, instances = synthetic.nuclei(1, size=size, seed=number)
        case = root / f"case{number}"
        (case / "images").mkdir(parents=True)
        rgba = np.dstack([images[0]] * 3 + [np.full(size, 255, np.uint8)])
        Image.fromarray(rgba).save(case / "images" / f"case{number}.png")
        for label in np.unique(instances[instances > 0]) if masks else ():
            (case / "masks").mkdir(exist_ok=True)
            Image.fromarray(np.where(instances[0] == label, 255, 0).astype(np.uint8)).save(
                case / "masks" / f"{label}.png"
            )


SIZES = [(64, 64), (64, 64), (80, 48), (64, 64)]


@pytest.fixture(scope="module")
def bowl(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bowl")
    science_bowl(root / "train", SIZES)
    science_bowl(root / "test", SIZES[1:3], masks=False)
    run("train", "--data", root / "train", "--out", root / "run", "--val", "3", "--steps", "4", "--base-channels", "2",
        "--depth", "2", "--tile", "32", "--device", "cpu")  # fmt: skip
    return root


def test_nested_folders_of_several_sizes_are_predicted_one_by_one(bowl):
    said = run("predict", bowl / "run", "--images", bowl / "test", "--out", bowl / "found", "--output", "instances",
               "--threshold", "0.4", "--device", "cpu")  # fmt: skip
    assert f"wrote {bowl / 'found'}/*.tif: instances of 2 images" in said
    assert sorted(path.name for path in (bowl / "found").iterdir()) == ["case0.tif", "case1.tif"]
    assert [tifffile.imread(bowl / "found" / f"case{n}.tif").shape[-2:] for n in range(2)] == SIZES[1:3]
    one = run("predict", bowl / "run", "--images", bowl / "test", "--slices", "1", "--out", bowl / "one.tif",
              "--output", "instances", "--threshold", "0.4", "--device", "cpu")  # fmt: skip
    assert "of 1 images" in one
    np.testing.assert_array_equal(
        tifffile.imread(bowl / "one.tif").squeeze(), tifffile.imread(bowl / "found" / "case1.tif").squeeze()
    )
    error = run("predict", bowl / "run", "--images", bowl / "test", "--out", bowl / "all.tif", fails=True)
    assert "images of different sizes: case0 and case1 do not fit into one TIFF; give --out a folder" in error
    assert "either as --images or as --data" in run("predict", bowl / "run", "--out", bowl / "all.tif", fails=True)


def test_a_data_set_of_several_sizes_is_predicted_and_scored(bowl):
    run("predict", bowl / "run", "--data", bowl / "train", "--out", bowl / "p", "--tta", "1", "--device", "cpu")
    said = run("evaluate", "--prediction", bowl / "p", "--data", bowl / "train", "--out", bowl / "m.json")
    assert f"wrote {bowl / 'm.json'} and {bowl / 'm.png'}" in said
    scores = json.loads((bowl / "m.json").read_text())
    dataset = data.read_dataset(bowl / "train")
    pages = [tifffile.imread(bowl / "p" / f"{item.name}.tif").reshape(item.label.shape) for item in dataset.items]
    labels = [item.label for item in dataset.items]
    # one long row of all pixels is scored alike by all that counts pixels
    row, truth = (np.concatenate([each.ravel() for each in list_])[None] for list_ in (pages, labels))
    assert scores["num_slices"] == 4
    assert scores["pixel_error"] == pytest.approx(metrics.pixel_error(row, truth))
    assert scores["dice"] == pytest.approx(metrics.dice(row, truth > 0))
    assert scores["squared_difference"] == pytest.approx(float(((row - (truth > 0)) ** 2).mean()), rel=1e-5)
    warping = np.mean([metrics.warping_error(p, t > 0) for p, t in zip(pages, labels, strict=True)])
    assert scores["warping_error"] == pytest.approx(float(warping))
    assert "holds 4 predictions, but 2 images" in run(
        "evaluate", "--prediction", bowl / "p", "--data", bowl / "train", "--slices", "0:2", fails=True
    )


@pytest.fixture
def drive(tmp_path, rng) -> Path:
    for number in (21, 22):
        for folder, name, array in (
            ("images", f"{number}_training.png", rng.integers(0, 256, (40, 48, 3))),
            ("1st_manual", f"{number}_manual1.png", np.where(rng.random((40, 48)) < 0.3, 255, 0)),
            ("mask", f"{number}_training_mask.png", np.where(np.arange(48) < 30 + number - 21, 255, 0) * np.ones((40, 1))),
        ):  # fmt: skip
            (tmp_path / "drive" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(array).astype(np.uint8)).save(tmp_path / "drive" / folder / name)
    return tmp_path / "drive"


def test_the_field_of_view_of_drive_counts(drive, tmp_path, rng):
    probability = rng.random((2, 40, 48)).astype(np.float32)
    data.write_stack(tmp_path / "p.tif", probability)
    run("evaluate", "--prediction", tmp_path / "p.tif", "--data", drive, "--out", tmp_path / "m.json")
    scores = json.loads((tmp_path / "m.json").read_text())
    dataset = data.read_dataset(drive)
    inside = np.stack([np.broadcast_to(np.arange(48) < width, (40, 48)) for width in (30, 31)])
    truth = np.stack([item.label for item in dataset.items]) > 0
    values, wanted = probability[inside][None], truth[inside][None]
    assert scores["pixel_error"] == pytest.approx(metrics.pixel_error(values, wanted))
    assert scores["iou"] == pytest.approx(metrics.iou(values, wanted))
    assert scores["iou_per_class"][0] == pytest.approx(metrics.iou_per_class(values, wanted)[0])
    assert scores["best_dice"] == pytest.approx(metrics.best_threshold(values, wanted).score)
    cropped = [metrics.warping_error(p[:, :w], t[:, :w]) for p, t, w in zip(probability, truth, (30, 31), strict=True)]
    assert scores["warping_error"] == pytest.approx(np.mean(cropped))
    # whatever is predicted outside, the scores are the same; masks may come as files of their own
    other = np.where(inside, probability, 1 - probability)
    same = evaluate(other, truth, ignored=~inside)
    assert {key: scores[key] for key in ("rand_error", "v_rand", "v_info", "dice")} == pytest.approx(
        {key: getattr(same, key) for key in ("rand_error", "v_rand", "v_info", "dice")}
    )
    data.write_stack(tmp_path / "labels.tif", truth)
    data.write_stack(tmp_path / "mask.tif", inside)
    run("evaluate", "--prediction", tmp_path / "p.tif", "--labels", tmp_path / "labels.tif", "--mask",
        tmp_path / "mask.tif", "--out", tmp_path / "f.json")  # fmt: skip
    files = json.loads((tmp_path / "f.json").read_text())
    for key in ("pixel_error", "rand_error", "iou", "warping_error", "v_info"):
        assert files[key] == pytest.approx(scores[key]), key
    for arguments, message in (
        (("--prediction", tmp_path / "p.tif"), "give the truth either as --labels"),
        (("--prediction", tmp_path / "p.tif", "--data", drive, "--mask", tmp_path / "mask.tif"), "leave --images and"),
        (("--prediction", tmp_path / "p.tif", "--data", drive, "--slices", "1"), "holds 2 predictions, but 1 images"),
    ):
        assert message in run("evaluate", *arguments, "--out", tmp_path / "x.json", fails=True)


def test_training_on_drive_ignores_what_is_outside(drive, tmp_path):
    said = run("train", "--data", drive, "--out", tmp_path / "run", "--val", "1", "--steps", "2", "--base-channels", "2",
               "--depth", "1", "--tile", "32", "--recipe", "batch-norm", "--device", "cpu")  # fmt: skip
    assert "DRIVE: 2 images of 40x48 px, 3 channel(s)" in said and "36% of the pixels ignored" in said
    run("predict", tmp_path / "run", "--data", drive, "--slices", "1", "--out", tmp_path / "p.tif", "--device", "cpu")
    run("evaluate", "--prediction", tmp_path / "p.tif", "--data", drive, "--slices", "1", "--out", tmp_path / "m.json")


@pytest.mark.usefixtures("real_pictures")
def test_preview_of_a_data_set_as_a_recipe_trains(drive, tmp_path):
    said = run("preview", "--data", drive, "--recipe", "batch-norm", "--tile", "32", "--out", tmp_path / "v.png")
    assert "DRIVE: 2 images" in said and f"wrote {tmp_path / 'v.png'}" in said
    assert np.asarray(Image.open(tmp_path / "v.png").convert("L")).std() > 5
    assert "no training data" in run("preview", "--out", tmp_path / "v.png", fails=True)


def test_an_image_with_colour_does_not_become_grey(bowl, rng, tmp_path):
    Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "c.png")
    error = run("predict", bowl / "run", "--images", tmp_path / "c.png", "--out", tmp_path / "p.tif", fails=True)
    assert "the image c has 3 channels that differ, but the network takes 1" in error


def test_predictions_in_a_folder_are_scored_by_their_names(bowl, tmp_path):
    for slices, scored in (("3,0", "m"), ("0,3", "n")):
        run("predict", bowl / "run", "--data", bowl / "train", "--slices", "0,3", "--out", tmp_path / "p", "--tta", "1",
            "--device", "cpu")  # fmt: skip
        run("evaluate", "--prediction", tmp_path / "p", "--data", bowl / "train", "--slices", slices,
            "--out", tmp_path / f"{scored}.json")  # fmt: skip
    named, ordered = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("m", "n"))
    assert named["pixel_error"] == ordered["pixel_error"]
    assert [row["name"] for row in named["per_slice"]] == ["case3", "case0"]
    assert named["per_slice"] == ordered["per_slice"][::-1]


def test_folders_of_predictions_and_labels_are_matched_by_name(tmp_path, rng):
    truth = (rng.random((3, 24, 24)) < 0.5).astype(np.uint8) * 255
    for name, predicted, label in zip("abc", ("mask_a", "b", "im_c"), truth, strict=True):
        data.write_stack(tmp_path / "l" / f"{name}.tif", label)
        data.write_stack(tmp_path / "fov" / f"{name}.tif", np.full_like(label, 255))
        data.write_stack(tmp_path / "p" / f"{predicted}.tif", label)  # b, im_c, mask_a in their natural order
    arguments = ("evaluate", "--labels", tmp_path / "l", "--out", tmp_path / "m.json", "--prediction", tmp_path / "p")
    run(*arguments)
    assert json.loads((tmp_path / "m.json").read_text())["pixel_error"] == 0
    (tmp_path / "p" / "b.tif").unlink()
    run(*arguments, "--slices", "2,0")
    scores = json.loads((tmp_path / "m.json").read_text())
    assert scores["pixel_error"] == 0 and [row["name"] for row in scores["per_slice"]] == ["c", "a"]
    (tmp_path / "p" / "im_c.tif").rename(tmp_path / "p" / "d.tif")
    assert "the label c has no prediction" in run(*arguments, "--slices", "0,2", fails=True).replace(
        f"{tmp_path}/l/", ""
    ).replace(".tif", "")
    (tmp_path / "fov" / "c.tif").rename(tmp_path / "fov" / "d.tif")
    data.write_stack(tmp_path / "p.tif", truth)
    assert "has no mask" in run("evaluate", "--labels", tmp_path / "l", "--out", tmp_path / "m.json", "--prediction",
                                tmp_path / "p.tif", "--mask", tmp_path / "fov", fails=True)  # fmt: skip


def test_what_training_says_that_it_wrote_is_there(drive, tmp_path):
    said = run("train", "--data", drive, "--out", tmp_path / "run", "--steps", "1", "--base-channels", "2",
               "--depth", "1", "--tile", "32", "--device", "cpu")  # fmt: skip
    assert "none of the 2 images is held out" in said and "--val" in said
    wrote = said.strip().splitlines()[-1].partition(f"wrote {tmp_path / 'run'}: ")[2].split(", ")
    assert set(wrote) == {path.name for path in (tmp_path / "run").iterdir()} - {"checkpoint.safetensors"}
    assert "model.safetensors" in wrote and "overlay.png" not in wrote


def test_a_run_does_not_land_among_the_images_that_it_trains_on(bowl, tmp_path, rng):
    """Its pictures would be counted with them when it is resumed."""
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(2):
            grey = rng.integers(0, 2, (32, 32)).astype(np.uint8) * 255
            Image.fromarray(grey).save(tmp_path / "set" / folder / f"{number}.png")
    root = tmp_path / "set"
    (tmp_path / "link").symlink_to(root / "labels")
    given = ("--images", root / "images", "--labels", root / "labels")
    options = ("--steps", "1", "--base-channels", "2", "--depth", "1", "--tile", "16", "--device", "cpu")
    for verb in (("train",), ("compare", "--models", "unet", "--val", "0")):
        for source in (given, ("--data", root)):
            for out in (root / "images", tmp_path / "link"):
                said = run(*verb, *source, "--out", out, *options, fails=True)
                assert "holds the images or labels of this training" in said
    assert sorted(path.name for path in (root / "images").iterdir()) == ["0.png", "1.png"]
    # beside them it may
    run("train", "--data", root, "--out", root, *options)
    assert (root / "model.safetensors").exists()
