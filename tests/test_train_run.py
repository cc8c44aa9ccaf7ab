"""Whole training runs on a few small images: the run folder, resuming after SIGKILL, several classes, errors."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests import processes
from unet_fast import data
from unet_fast.data import synthetic
from unet_fast.errors import InputError
from unet_fast.train import default_config, load_model, loop, read_config, train, trainer
from unet_fast.train.checkpoint import load_tensors

SMALL = {"base_channels": 4, "depth": 2, "tile": 32}


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> tuple[Path, Path]:
    """Six small synthetic slices as files."""
    folder = tmp_path_factory.mktemp("stack")
    images, instances = synthetic.membranes(6, size=(64, 72), seed=3)
    data.write_stack(folder / "images.tif", images)
    data.write_stack(folder / "labels.tif", (instances > 0).astype(np.uint8) * 255)
    return folder / "images.tif", folder / "labels.tif"


@pytest.fixture(scope="module")
def pair(stack) -> data.Pair:
    return data.read_pair(*stack)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("real_pictures")
def test_a_run_learns_and_fills_its_folder(pair, tmp_path):
    config = default_config("cpu", steps=60, **SMALL, learning_rate=3e-3, validations=3)
    out = tmp_path / "run"
    summary = train(config, pair.select([0, 1, 2, 3]), pair.select([4, 5]), out, progress=False)
    table = rows(out)
    assert summary.steps == 60 and int(table[-1]["step"]) == 60
    losses = [float(row["loss"]) for row in table if row["loss"]]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    validated = [row for row in table if row["val_pixel_error"]]
    assert [int(row["step"]) for row in validated] == [20, 40, 60]
    best = min(float(row["val_pixel_error"]) for row in validated)
    assert summary.validation.criterion == pytest.approx(best, rel=1e-4)
    assert read_config(out) == config
    for name in ("loss.png", "preview.png", "overlay.png"):
        assert np.asarray(Image.open(out / name).convert("L")).std() > 5
    # the saved weights are those that scored best, not a copy of the last ones
    model, _ = load_model(out)
    _, state = load_tensors(out / "model.safetensors")
    assert state["pixel_error"] == pytest.approx(summary.validation.pixel_error)
    assert sum(p.numel() for p in model.parameters()) > 1000
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        train(config, pair, None, out, progress=False)


@pytest.mark.usefixtures("plain_pictures")
def test_the_same_seed_gives_the_same_weights_and_another_does_not(pair, tmp_path):
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        config = default_config("cpu", steps=4, **SMALL, seed=seed)
        train(config, pair, None, tmp_path / name, progress=False)
        return load_tensors(tmp_path / name / "model.safetensors")[0]

    a, b, c = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def command(stack: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return [
        "-m", "unet_fast", "train", "--images", str(stack[0]), "--labels", str(stack[1]),
        "--out", str(out), "--val", "5", "--steps", "24", "--base-channels", "4", "--depth", "2", "--tile", "32",
        "--checkpoint-steps", "4", "--dropout", "0.3", "--device", "cpu",
        "--no-amp", *more,  # the default is measured anew by every start, and two starts are compared here
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_killed_and_resumed_equals_uninterrupted(stack, tmp_path, optimizer):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert processes.run(*command(stack, straight, "--optimizer", optimizer)).returncode == 0
    process = processes.start(*command(stack, killed, "--optimizer", optimizer))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (killed / "checkpoint.safetensors").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    step = load_tensors(killed / "checkpoint.safetensors")[1]["step"]
    assert 0 < step < 24
    # a run killed again while it resumes loses nothing either
    resumed = processes.run(*command(stack, killed, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on after step {step}".encode() in resumed.stdout
    for name in ("model.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_tensors(killed / name)[0], load_tensors(straight / name)[0]
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    without_time = [[(k, v) for k, v in row.items() if k != "seconds"] for row in rows(killed)]
    assert without_time == [[(k, v) for k, v in row.items() if k != "seconds"] for row in rows(straight)]
    assert not list(killed.glob(".*")), "no temporary file is left behind"


@pytest.mark.usefixtures("plain_pictures")
def test_three_classes_and_a_valid_network(rng, tmp_path):
    labels = np.kron(rng.integers(0, 3, (5, 6, 6)), np.ones((1, 12, 12), dtype=np.int64)).astype(np.int32)
    images = labels[:, None] + 0.1 * rng.standard_normal((5, 1, 72, 72))
    pair = data.Pair(images.astype(np.float32), labels, "classes", 3, [str(i) for i in range(5)])
    network = {"base_channels": 6, "depth": 1, "padding": "valid", "tile": 32, "num_classes": 3}
    config = default_config("cpu", steps=40, learning_rate=5e-3, amp=False, **network)
    summary = train(config, pair.select([0, 1, 2, 3]), pair.select([4]), tmp_path / "run", progress=False)
    assert summary.validation.rand_error is None
    assert summary.validation.pixel_error < 0.35  # guessing the commonest class errs on about 0.6


@pytest.mark.usefixtures("plain_pictures")
def test_a_budget_in_minutes_ends_in_time(pair, tmp_path, monkeypatch):
    clock = itertools.count(step=0.02)  # every look at it takes so many seconds, however busy the machine is
    for module in (trainer, loop):  # the reserve for the last validation is of the same clock
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = default_config("cpu", minutes=0.05, **SMALL)
    summary = train(config, pair, pair.select([0]), tmp_path / "run", progress=False)
    assert summary.steps > 20 and 3 <= summary.seconds < 3.2
    rates = [float(row["lr"]) for row in rows(tmp_path / "run")]
    assert rates[-1] < 0.2 * max(rates)


@pytest.mark.usefixtures("plain_pictures")
def test_divergence_is_one_clear_error(pair, tmp_path):
    config = default_config("cpu", steps=60, **SMALL, norm="none", optimizer="sgd", learning_rate=1e6, amp=False)
    with pytest.raises(InputError, match="training diverged: the loss is (nan|inf) at step .*lower the learning rate"):
        train(config, pair, None, tmp_path / "run", progress=False)


@pytest.mark.usefixtures("plain_pictures")
def test_data_that_do_not_fit_the_network(pair, tmp_path):
    with pytest.raises(InputError, match="the images have 1 channels but the network takes 3"):
        train(default_config("cpu", steps=1, in_channels=3, **SMALL), pair, None, tmp_path / "a", progress=False)
    many = data.Pair(pair.images, pair.labels * 4, "classes", 5, pair.names)
    with pytest.raises(InputError, match="the labels have 5 classes but the network gives 2"):
        train(default_config("cpu", steps=1, **SMALL), many, None, tmp_path / "b", progress=False)


@pytest.mark.usefixtures("plain_pictures")
def test_a_checkpoint_of_another_network_is_refused(pair, tmp_path):
    out = tmp_path / "run"
    train(default_config("cpu", steps=2, **SMALL), pair, None, out, progress=False)
    text = json.loads((out / "config.json").read_text())
    text["model"]["base_channels"] = 8
    (out / "config.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match="does not fit the network of config.json"):
        load_model(out)
    with pytest.raises(InputError, match="does not fit this run's configuration"):
        train(read_config(out), pair, None, out, resume=True, progress=False)


def test_not_a_run_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"is not a run folder: it holds no config.json"):
        load_model(tmp_path)


def test_a_folder_below_a_file_cannot_be_written(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot create the folder .*choose a folder that you may write to"):
        train(default_config("cpu", steps=1, **SMALL), pair, None, tmp_path / "file" / "run", progress=False)
