"""The command line as a user meets it: help, a whole chain of verbs, and one line for every mistake."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from tests import processes
from unet_fast import cli, data
from unet_fast.data import synthetic
from unet_fast.ops._record import OPS

VERBS = tuple(command.callback.__name__ for command in cli.app.registered_commands if command.callback)


def run(*arguments: object, fails: bool = False) -> str:
    """Run the command through main(), errors printed as users see them; its output, or its one error line."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with mock.patch.object(sys, "argv", ["unet-fast", *map(str, arguments)]):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
    if not fails:
        assert code == 0, err.getvalue()
        return out.getvalue()
    assert code == 2
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err.getvalue()
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    assert {"train", "recipes", "compare", "predict", "evaluate", "preview", "info"} < set(VERBS)
    done = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"Example: unet-fast {verb}" in done.output


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    images, instances = synthetic.nuclei(4, size=(128, 96), seed=1)
    data.write_stack(folder / "images.tif", images)
    data.write_stack(folder / "labels.tif", instances.astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def trained(files) -> Path:
    run("train", "--images", files / "images.tif", "--labels", files / "labels.tif", "--out", files / "run",
        "--val", "3", "--steps", "6", "--base-channels", "4", "--depth", "2", "--tile", "32",
        "--device", "cpu")  # fmt: skip
    return files / "run"


@pytest.mark.usefixtures("real_pictures")
def test_train_predict_evaluate(files, trained):
    said = run("predict", trained, "--images", files / "images.tif", "--out", files / "p.tif", "--device", "cpu")
    assert f"wrote {files / 'p.tif'}" in said
    probabilities = tifffile.imread(files / "p.tif")
    assert probabilities.shape == (4, 128, 96) and probabilities.dtype == np.float32
    assert 0 <= probabilities.min() < probabilities.max() <= 1
    said = run("evaluate", "--prediction", files / "p.tif", "--labels", files / "labels.tif",
               "--images", files / "images.tif", "--out", files / "m.json")  # fmt: skip
    scores = json.loads((files / "m.json").read_text())
    for name in ("pixel_error", "rand_error", "dice", "iou", "best_threshold"):
        assert 0 <= scores[name] <= 1
    assert f"wrote {files / 'm.json'}" in said
    assert np.asarray(Image.open(files / "m.png").convert("L")).std() > 5


def test_predict_labels_of_some_slices(files, trained):
    run("predict", trained, "--images", files / "images.tif", "--out", files / "l.tif", "--output", "labels",
        "--slices", "1:3", "--tta", "1", "--device", "cpu")  # fmt: skip
    labels = tifffile.imread(files / "l.tif")
    assert labels.shape == (2, 128, 96) and set(np.unique(labels)) <= {0, 1}
    said = run("evaluate", "--prediction", files / "l.tif", "--labels", files / "labels.tif", "--slices", "1:3",
               "--out", files / "l.json")  # fmt: skip
    assert "rand" in said.lower()


@pytest.mark.usefixtures("real_pictures")
def test_preview(files):
    run("preview", "--images", files / "images.tif", "--labels", files / "labels.tif", "--out", files / "v.png",
        "--tile", "48")  # fmt: skip
    assert np.asarray(Image.open(files / "v.png").convert("L")).std() > 5


def test_info_names_every_op_and_the_reason_why_a_backend_is_not_used():
    said = run("info")
    for name in (*OPS, "cpp"):
        assert name in said
    again = processes.run("-m", "unet_fast.info")
    assert again.returncode == 0 and min(OPS).encode() in again.stdout


def test_mistakes_are_one_line_each(files, trained, tmp_path):
    images, labels = files / "images.tif", files / "labels.tif"
    short = tmp_path / "short.tif"
    data.write_stack(short, np.zeros((3, 128, 96), np.uint8))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(images.read_bytes()[:-400])
    nan = tmp_path / "nan.tif"
    data.write_stack(nan, np.full((4, 128, 96), np.nan, np.float32))
    (tmp_path / "a-file").write_text("")

    def train_with(i: Path, m: Path, *more: object, out: Path = tmp_path / "run") -> str:
        return run("train", "--images", i, "--labels", m, "--out", out, "--steps", "1", *more, fails=True)

    assert "missing.tif" in train_with(tmp_path / "missing.tif", labels)
    assert "cut.tif" in train_with(cut, labels)
    assert "NaN" in train_with(nan, labels)
    assert "(3, " in train_with(images, short)
    assert "tile is 37: output height 37 does not fit this network; the nearest legal output sizes are 36 and 40" in (
        train_with(images, labels, "--tile", "37", "--padding", "valid", "--depth", "2")
    )
    # what did not start is no run, so the corrected command is not refused
    assert not (tmp_path / "run" / "config.json").exists()
    assert "cannot create the folder" in train_with(images, labels, out=tmp_path / "a-file" / "run")
    assert "go beyond the last one" in train_with(images, labels, "--val", "9:12")
    assert "already holds a run" in train_with(images, labels, out=trained)
    assert "is not a run folder" in run(
        "predict", tmp_path, "--images", images, "--out", tmp_path / "p.tif", fails=True
    )
    assert "short.tif holds 3 predictions, but 4 images of" in run(
        "evaluate", "--prediction", short, "--labels", labels, "--out", tmp_path / "m.json", fails=True
    )
    assert "end it in .png" in run(
        "preview", "--images", images, "--labels", labels, "--out", tmp_path / "p.jpg", fails=True
    )
    assert "expected auto, cpu" in run("predict", trained, "--images", images, "--out", tmp_path / "p.tif",
                                        "--device", "tpu", fails=True)  # fmt: skip


@pytest.mark.parametrize("option", ["--images", "--out"])
def test_an_empty_argument_is_not_the_present_folder(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"--images": "a.tif", "--out": "b.tif", option: ""}
    said = run("predict", "RUN", *(part for pair in given.items() for part in pair), fails=True)
    assert said.startswith("error: an argument is empty")


def test_evaluate_writes_no_file_over_a_folder(tmp_path):
    tifffile.imwrite(tmp_path / "l.tif", np.eye(8, dtype=np.uint8), photometric="minisblack")
    said = run(
        "evaluate", "--prediction", tmp_path / "l.tif", "--labels", tmp_path / "l.tif", "--out", tmp_path, fails=True
    )
    assert "name the JSON file to write" in said and [path.name for path in tmp_path.iterdir()] == ["l.tif"]
