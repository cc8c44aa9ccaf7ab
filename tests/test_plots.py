"""Pictures: they exist, have the expected size, and show what they should where they should."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_fast import plots
from unet_fast.errors import InputError
from unet_fast.metrics._instances import compact
from unet_fast.metrics.average_precision import pairing
from unet_fast.plots._canvas import BLUE, ORANGE, PURPLE, SKY, VERMILLION, as_pictures, draw_contours, rgb
from unet_fast.plots.curves import smooth
from unet_fast.plots.objects import FATES, fates_of

pytestmark = pytest.mark.usefixtures("real_pictures")


def read(path: Path) -> np.ndarray:
    """A PNG as (H, W, 3); fails if it is another format or a broken file."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((picture == np.array(rgb(colour))).all(axis=-1).sum())


def curve_rows(n: int = 100) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"step": i, "seconds": 2.0 * i, "loss": 1 / i + 0.1, "lr": 1e-3, "val_loss": ""} for i in range(1, n + 1)
    ]
    for i in range(9, n, 10):
        rows[i].update(val_loss=1 / (i + 1) + 0.2, val_pixel_error=0.1 + 1 / (i + 1), val_rand_error=0.3)
    return rows


# --- loss curve ------------------------------------------------------------------------------------------------------


def test_loss_curve_draws_every_panel(tmp_path: Path) -> None:
    out = plots.loss_curve(curve_rows(), tmp_path / "sub" / "loss.png")
    picture = read(out)
    assert picture.shape == (340 + 250 + 120 + 70, 1000, 3)
    for colour in (BLUE, ORANGE, VERMILLION):  # smoothed loss, validation loss, Rand error
        assert count(picture, colour) > 100
    assert list(out.parent.iterdir()) == [out]  # no temporary file is left


def test_loss_curve_from_csv_equals_rows_and_leaves_out_what_is_missing(tmp_path: Path) -> None:
    rows = [{"step": row["step"], "loss": row["loss"]} for row in curve_rows()]
    text = "step,seconds,loss,lr,val_loss,val_pixel_error,val_rand_error\n"
    (tmp_path / "metrics.csv").write_text(text + "".join(f"{row['step']},,{row['loss']},,,,\n" for row in rows))
    from_csv = read(plots.loss_curve(tmp_path / "metrics.csv", tmp_path / "a.png"))
    assert from_csv.shape == (340 + 70, 1000, 3)
    assert (from_csv == read(plots.loss_curve(rows, tmp_path / "b.png"))).all()
    assert count(from_csv, BLUE) > 100 and count(from_csv, ORANGE) == 0


def test_loss_curve_has_a_panel_for_the_heads(tmp_path: Path) -> None:
    rows = [{**row, "loss_head_1": 1 / (i + 1), "loss_head_2": 2 / (i + 1)} for i, row in enumerate(curve_rows())]
    rows[0]["loss_head_2"] = ""
    picture = read(plots.loss_curve(rows, tmp_path / "loss.png"))
    assert picture.shape == (340 + 250 + 250 + 120 + 70, 1000, 3)
    assert count(picture[380:640], "#440154") > 100  # the first of the colours, in the panel of the heads


@pytest.mark.parametrize("n", [1, 2, 31])
def test_loss_curve_of_few_steps_and_odd_values(tmp_path: Path, n: int) -> None:
    rows = curve_rows(n)
    rows[0]["loss"] = "nan"
    rows.append({"step": n + 1, "loss": 0.0, "val_rand_error": 0.0})
    assert count(read(plots.loss_curve(rows, tmp_path / "loss.png")), VERMILLION) > 20


def test_smoothing_keeps_constants_lines_and_lengths(rng: np.random.Generator) -> None:
    assert smooth(np.full(57, 3.5)) == pytest.approx(3.5)
    line = np.arange(1000.0)
    assert smooth(line)[200:800] == pytest.approx(line[200:800])  # no lag
    noise = rng.normal(size=5000)
    assert smooth(noise).std() < 0.2 and smooth(noise).shape == noise.shape


def test_loss_curve_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the list of rows holds no row with a step and a loss \(0 rows\)"):
        plots.loss_curve([], tmp_path / "a.png")
    (tmp_path / "empty.csv").write_text("step,loss\n")
    with pytest.raises(InputError, match=r"empty.csv holds no row with a step and a loss \(0 rows\)"):
        plots.loss_curve(tmp_path / "empty.csv", tmp_path / "a.png")
    with pytest.raises(InputError, match="row 2 has 'x' under 'loss', expected a number or nothing"):
        plots.loss_curve([{"step": 1, "loss": 1}, {"step": 2, "loss": "x"}], tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        plots.loss_curve(tmp_path / "missing.csv", tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot create the folder"):
        plots.loss_curve(curve_rows(), tmp_path / "file" / "a.png")
    assert not (tmp_path / "a.png").exists()


# --- preview ---------------------------------------------------------------------------------------------------------


def test_preview_shows_contours_weights_and_the_frame_of_the_output(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.normal(100, 3, (2, 1, 120, 120)).astype(np.float32)
    labels = np.zeros((2, 80, 80), dtype=np.int32)
    labels[:, 10:40, 10:40], labels[:, 45:75, 30:70] = 1, 2
    weights = np.ones((2, 80, 80), dtype=np.float32)
    weights[:, 40:45] = 11
    picture = read(plots.preview(images, labels, weights, tmp_path / "preview.png"))
    assert picture.shape == (2 * 342 + 30, 3 * 342 + 90, 3)
    third = picture.shape[1] // 3
    assert count(picture[:, :third], VERMILLION) > 500  # the frame
    middle = picture[:, third - 40 : 2 * third - 40].astype(int)
    for colour in (ORANGE, SKY):
        assert (np.abs(middle - rgb(colour)).max(axis=-1) < 40).sum() > 500  # both labels
    same = read(plots.preview(images[:, :, 20:100, 20:100], labels, None, tmp_path / "same.png"))
    assert same.shape == (2 * 342 + 30, 2 * 342, 3)
    assert count(same, VERMILLION) == 0  # nothing is cut off, so no frame


def test_preview_of_a_mask_has_one_colour_and_at_most_six_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.normal(size=(9, 3, 40, 60))
    labels = np.zeros((9, 40, 60), dtype=np.uint8)
    labels[:, 10:30, 10:50] = 255
    labels[0, 0, 0] = 0
    grids = np.stack([plots.grid_image((40, 60))] * 9)
    picture = read(plots.preview(images, labels, None, tmp_path / "p.png", grids=grids))
    assert picture.shape == (6 * 232 + 30, 3 * 342, 3)
    assert count(picture, ORANGE) > 1000 and count(picture, SKY) == 0


def test_grid_image_has_lines_at_its_spacing() -> None:
    grid = plots.grid_image((50, 70), spacing=10)
    assert grid.shape == (50, 70) and grid.dtype == np.float32
    assert (np.flatnonzero(grid[5]) == np.arange(0, 70, 10)).all()
    assert (np.flatnonzero(grid[:, 5]) == np.arange(0, 50, 10)).all()
    with pytest.raises(InputError, match="spacing is 1, expected at least 2"):
        plots.grid_image((5, 5), spacing=1)


def test_contours_lie_inside_their_label() -> None:
    labels = np.zeros((20, 20), dtype=np.int64)
    labels[5:15, 5:10], labels[5:15, 10:15] = 1, 2
    drawn = draw_contours(np.zeros((20, 20, 3), np.float32), labels, (ORANGE, SKY))
    coloured = drawn.any(axis=-1)
    assert not coloured[labels == 0].any()
    assert coloured[5:15, 9].all() and coloured[5:15, 10].all()  # both sides of the common border
    assert not coloured[7:13, 7].any()
    assert (drawn[10, 5] * 255 == rgb(ORANGE)).all() and (drawn[10, 14] * 255 == rgb(SKY)).all()


def test_pictures_are_stretched_and_constant_images_do_not_fail() -> None:
    images = np.stack([np.full((8, 8), 7.0), np.arange(64.0).reshape(8, 8) * 100 - 9])
    pictures = as_pictures("images", images)
    assert pictures.shape == (2, 8, 8, 3)
    assert (pictures[0] == 0).all()
    assert pictures[1].min() == 0 and pictures[1].max() == 1
    assert as_pictures("images", np.ones((1, 5, 4, 6))).shape == (1, 4, 6, 3)


def test_preview_errors(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 1, 8, 8)), np.zeros((2, 8, 8), int)
    with pytest.raises(InputError, match=r"images has shape \(8, 8\), expected a non-empty \(N, C, H, W\)"):
        plots.preview(images[0, 0], labels, None, tmp_path / "p.png")
    with pytest.raises(InputError, match=r"labels have shape \(1, 8, 8\) for images of \(2, 8, 8\)"):
        plots.preview(images, labels[:1], None, tmp_path / "p.png")
    with pytest.raises(InputError, match=r"weights have shape \(2, 7, 8\), expected that of the labels, \(2, 8, 8\)"):
        plots.preview(images, labels, np.ones((2, 7, 8)), tmp_path / "p.png")


# --- overlay, worst and best -----------------------------------------------------------------------------------------


@pytest.fixture
def stack(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, truth, and probabilities of which slice 0 is right, 1 finds too much, 2 finds too little."""
    images = rng.normal(size=(3, 60, 60)).astype(np.float32)
    truth = np.zeros((3, 60, 60), dtype=np.uint8)
    truth[:, 15:45, 15:45] = 255
    probabilities = (truth > 0).astype(np.float32)
    probabilities[1, 0:10] = 1
    probabilities[2, 20:40, 20:40] = 0.1
    return images, truth, probabilities


def rows_of(picture: np.ndarray, n: int) -> list[np.ndarray]:
    """The bands of the slices; the legend lies below them."""
    height = (picture.shape[0] - 40) // n
    return [picture[k * height : (k + 1) * height] for k in range(n)]


def test_overlay_colours_the_errors_where_they_are(
    tmp_path: Path, stack: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    images, truth, probabilities = stack
    picture = read(plots.overlay(images, truth, probabilities, tmp_path / "overlay.png"))
    assert picture.shape == (3 * 384 + 75, 4 * 342 + 75, 3)
    right, positive, negative = rows_of(picture, 3)
    assert count(right, VERMILLION) == count(right, BLUE) == 0
    assert count(positive, VERMILLION) > 5000 and count(positive, BLUE) == 0
    assert count(negative, VERMILLION) == 0 and count(negative, BLUE) > 5000
    assert count(right, ORANGE) > 500  # contours of the truth
    # a false positive lies in the top of the last panel: 600 of 3600 pixels of it
    columns = np.flatnonzero((positive == np.array(rgb(VERMILLION))).all(axis=-1).any(axis=0))
    panel = columns[-1] - columns[0] + 1
    assert columns[0] > 0.7 * picture.shape[1]
    assert count(positive, VERMILLION) == pytest.approx(panel * panel / 6, rel=0.05)
    # at a lower threshold the missing part is found
    low = read(plots.overlay(images, truth, probabilities, tmp_path / "low.png", threshold=0.05))
    assert count(rows_of(low, 3)[2], BLUE) == 0


def test_overlay_of_many_slices_of_classes_without_images(tmp_path: Path, rng: np.random.Generator) -> None:
    truth = np.zeros((12, 20, 30), dtype=np.int64)
    truth[:, 5:15, 5:15], truth[:, 5:15, 18:28] = 1, 2
    probabilities = np.full((12, 3, 20, 30), 0.1)
    np.put_along_axis(probabilities, truth[:, None], 0.8, axis=1)
    swapped = probabilities[:, [0, 2, 1]]
    picture = read(plots.overlay(None, truth, probabilities, tmp_path / "right.png", max_slices=2))
    assert picture.shape == (2 * (220 + 54) + 75, 3 * 342 + 75, 3)
    assert count(rows_of(picture, 2)[1], PURPLE) == 0
    wrong = read(plots.overlay(None, truth, swapped, tmp_path / "wrong.png", max_slices=2))
    assert count(rows_of(wrong, 2)[1], PURPLE) > 5000


def test_worst_best_ranks_by_the_first_score(
    tmp_path: Path, stack: tuple[np.ndarray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth, probabilities = stack
    scores = {"Rand error": [0.0, 0.5, np.nan], "pixel error": [0.0, 0.2, 0.9]}
    picture = read(plots.worst_best(images, truth, probabilities, scores, tmp_path / "wb.png"))
    assert picture.shape == (2 * 384 + 75, 4 * 342 + 75, 3)  # the unranked slice is left out
    worst, best = rows_of(picture, 2)
    assert count(worst, VERMILLION) > 5000  # slice 1
    assert count(best, VERMILLION) == count(best, BLUE) == 0  # slice 0
    nothing = {"Rand error": np.full(3, np.nan)}
    assert read(plots.worst_best(None, truth, probabilities, nothing, tmp_path / "n.png", count=1)).shape[0] == 843


def test_slices_errors(tmp_path: Path, stack: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, truth, probabilities = stack
    out = tmp_path / "p.png"
    draw: Callable[..., Path] = plots.overlay
    with pytest.raises(InputError, match=r"probabilities have shape \(2, 60, 60\) but truth has \(3, 60, 60\)"):
        draw(images, truth, probabilities[:2], out)
    with pytest.raises(InputError, match=r"images have shape \(3, 59, 60\) but truth has \(3, 60, 60\)"):
        draw(images[:, 1:], truth, probabilities, out)
    with pytest.raises(InputError, match="probabilities holds NaN"):
        draw(images, truth, probabilities * np.nan, out)
    with pytest.raises(InputError, match=r"expected a non-empty \(N, H, W\) and"):
        draw(images[0], truth[0], probabilities[0], out)
    with pytest.raises(InputError, match=r"scores of 'Rand error' have shape \(2,\), expected one per slice, \(3,\)"):
        plots.worst_best(images, truth, probabilities, {"Rand error": [1, 2]}, out)
    with pytest.raises(InputError, match="scores is empty"):
        plots.worst_best(images, truth, probabilities, {}, out)
    assert not out.exists()


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    """Its global state is not ours to touch; a fresh process, since other tests may use it."""
    code = """
import sys
from unet_fast import plots
plots.loss_curve([{"step": 1, "loss": 1.0}], sys.argv[1])
assert "matplotlib.backends.backend_agg" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "loss.png")], check=True)


def test_ignored_pixels_are_no_errors(tmp_path: Path, stack: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, truth, probabilities = stack
    ignored = np.zeros(truth.shape, bool)
    ignored[1, :10] = True  # all that slice 1 finds too much
    picture = read(plots.overlay(images, truth, probabilities, tmp_path / "o.png", ignored=ignored))
    right, positive, negative = rows_of(picture, 3)
    assert count(positive, VERMILLION) == 0 and count(negative, BLUE) > 5000
    assert count(positive, "#333333") > 5000 and count(right, "#333333") < 1000  # letters
    with pytest.raises(InputError, match=r"ignored has shape \(2, 60, 60\) but truth has \(3, 60, 60\)"):
        plots.overlay(images, truth, probabilities, tmp_path / "o.png", ignored=ignored[:2])


def test_objects_shows_what_became_of_each(tmp_path: Path) -> None:
    truth = np.zeros((2, 60, 80), np.int32)
    truth[0, 4:24, 4:24], truth[0, 4:24, 30:40], truth[0, 4:24, 40:50], truth[0, 30:50, 4:44] = 9, 2, 3, 4
    truth[0, 30:50, 60:70] = 5
    found = np.where(truth == 9, 1, 0)
    found[0, 4:24, 30:50] = 7  # 2 and 3 in one
    found[0, 30:50, 4:26], found[0, 30:50, 26:44] = 3, 4  # 4 in two, of which the first has an IoU above a half
    found[0, 54:58, 60:70] = 5
    fates = fates_of(pairing(compact(found[0]), compact(truth[0])))
    named = ["absent", *FATES]
    assert [named[fate + 1] for fate in fates.true[[9, 2, 3, 4, 5]]] == ["found", "merged", "merged", "split", "missed"]
    assert [named[fate + 1] for fate in fates.predicted[[1, 7, 3, 4, 5, 2]]] == [
        "found",
        "merged",
        "split",
        "split",
        "invented",
        "absent",
    ]
    assert fates.partner[[1, 3, 4, 5]].tolist() == [9, 4, 4, 0]
    truth[1, 4:24, 4:24], found[1, 4:24, 4:24] = 1, 1
    images = np.random.default_rng(0).random((2, 3, 60, 80))
    picture = read(plots.objects(images, truth, found, tmp_path / "o.png", names=["a", "b$"]))
    worst, best = rows_of(picture, 2)
    for name, colour in FATES.items():
        assert count(worst, colour) > 50, name
        assert (count(best, colour) > 50) == (name == "found"), name  # the best row is the slice without a fault
    alone = read(plots.objects(None, truth[:1], found[:1], tmp_path / "o.png"))
    assert alone.shape[1] < picture.shape[1]
    with pytest.raises(InputError, match=r"images show \(2, 60, 80\) but truth has shape \(1, 60, 80\)"):
        plots.objects(images, truth[:1], found[:1], tmp_path / "o.png")
    with pytest.raises(InputError, match=r"prediction has shape \(2, 60, 80\) but truth has \(1, 60, 80\)"):
        plots.objects(images, truth[:1], found, tmp_path / "o.png")
