"""Going on with a run: what may change and what may not, after which interruptions, and what is damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from unet_fast import data
from unet_fast.data.datasets import read_matching
from unet_fast.errors import InputError
from unet_fast.train import (
    TrainConfig,
    changed,
    check_same_data,
    default_config,
    load_model,
    read_config,
    run_folder,
    train,
)
from unet_fast.train.checkpoint import load_tensors, save_tensors
from unet_fast.train.run_folder import MetricsLog, locked
from unet_fast.train.signals import Interruption
from unet_fast.train.trainer import Trainer
from unet_fast.train.validation import cannot_judge
from unet_fast.train.writer import CheckpointWriter

pytestmark = pytest.mark.usefixtures("plain_pictures")


def small(**settings) -> TrainConfig:
    return default_config("cpu", **{"steps": 12, "base_channels": 2, "depth": 1, "tile": 16, "amp": False, **settings})


@pytest.fixture
def pair(rng) -> data.Pair:
    labels = np.kron(rng.integers(0, 2, (4, 3, 3)), np.ones((1, 8, 8), dtype=np.int64)).astype(np.uint8)
    images = (labels[:, None] * 90 + rng.integers(0, 60, (4, 1, 24, 24))).astype(np.uint8)
    return data.Pair(images, labels, "mask", 2, list("abcd"))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_tensors(out / "checkpoint.safetensors")[0]


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 5), (signal.SIGTERM, 6), (signal.SIGHUP, 9)])
def test_a_signal_ends_the_run_between_steps_and_resume_is_exact(pair, tmp_path, monkeypatch, number, at):
    """Before, when and after the statistics of batch normalisation begin to stand, which they do at half of the budget."""
    validation = pair.select([3])
    train(small(), pair, validation, tmp_path / "whole", progress=False)
    compute, done = Trainer.compute, 0

    def interrupted(self: Trainer) -> None:
        nonlocal done
        done += 1
        if done == at:  # in the middle of a step
            os.kill(os.getpid(), number)
        compute(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "compute", interrupted)
        before = signal.getsignal(number)
        summary = train(small(), pair, validation, tmp_path / "run", progress=False)
    assert (summary.interrupted, summary.signal, summary.steps) == (True, number, at)
    assert signal.getsignal(number) is before
    again = train(small(), pair, validation, tmp_path / "run", resume=True, progress=False)
    assert not again.interrupted and again.steps == 12
    ours, theirs = tensors(tmp_path / "run"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("run", "whole")]
    without_time = [[(line.split(",")[0], *line.split(",")[2:]) for line in each] for each in rows]
    assert without_time[0] == without_time[1]


def test_a_second_signal_does_what_it_always_did():
    with Interruption() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_finished_run_is_not_written_again(pair, tmp_path):
    train(small(), pair, pair.select([0]), tmp_path, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}
    steps = [line.split(",")[0] for line in before["metrics.csv"].decode().splitlines()]
    assert steps.count("12") == 1
    train(small(), pair, pair.select([0]), tmp_path, resume=True, progress=False)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}
    longer = train(small(steps=14), pair, pair.select([0]), tmp_path, resume=True, progress=False)
    assert longer.steps == 14


def test_two_runs_do_not_share_a_folder(pair, tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="another process is training into"):
        train(small(), pair, None, tmp_path, progress=False)
    train(small(steps=1), pair, None, tmp_path, progress=False)


def test_a_run_that_cannot_start_leaves_its_folder_free(pair, tmp_path):
    config = small(model="unet-bn", tile=2)
    with pytest.raises(InputError, match="one pixel at the lowest level"):
        train(config, pair, None, tmp_path, progress=False)
    train(dataclasses.replace(config, batch_size=2), pair, None, tmp_path, progress=False)


def test_settings_that_change_are_named_and_obeyed():
    said: list[str] = []
    config = changed(
        small(), {"learning_rate": 0.5, "batch_size": 3, "tile": None, "base_channels": 2}, "run", said.append
    )
    assert (config.optimizer.learning_rate, config.batch_size, config.tile) == (0.5, 3, 16)
    assert len(said) == 2 and "learning_rate is 0.5, was 0.003" in said[0]
    other = changed(small(), {"loss": "dice"}, "run", said.append)
    assert (other.loss.name, other.loss.w0, other.loss.balance) == ("dice", 0.0, False)
    assert changed(small(), {"loss": "dice", "w0": 3.0}, "run", said.append).loss.w0 == 3.0


@pytest.mark.parametrize(
    "given",
    [{"base_channels": 4}, {"model": "unet-bn"}, {"optimizer": "sgd"}, {"seed": 3}, {"encoder_weights": "r.pth"}],
)
def test_settings_that_cannot_change_are_refused(given):
    with pytest.raises(InputError, match="cannot be changed when it is resumed"):
        changed(small(), given, "run", lambda text: None)


def test_other_data_are_refused(rng, tmp_path):
    images, labels = rng.integers(0, 255, (4, 12, 14)).astype(np.uint8), np.zeros((4, 12, 14), np.uint8)
    labels[:, 3:9, 2:7] = 255

    def dataset(labels=labels, count=4):
        for name, stack in (("i", images), ("l", labels)):
            tifffile.imwrite(tmp_path / f"{name}.tif", stack[:count], photometric="minisblack")
        return read_matching(tmp_path / "i.tif", tmp_path / "l.tif")

    now = dataset().fingerprint()
    config = small(data={"fingerprint": now})
    check_same_data(config, now, "run")
    check_same_data(config, dataset().outline(), "run")
    loaded = dataset()
    loaded.pair([2, 0])  # what was read on the way is not read again, and gives the same
    assert loaded.fingerprint() == now
    check_same_data(small(), dataset(count=1).fingerprint(), "run")  # of a run that did not say what it was trained on
    changed = labels.copy()
    changed[2, 5, 5] ^= 255
    with pytest.raises(InputError, match=r"trained on other data \(checksum "):
        check_same_data(config, dataset(changed).fingerprint(), "run")
    with pytest.raises(InputError, match="images 4 then, 2 now"):
        check_same_data(config, dataset(count=2).outline(), "run")


def edited(out: Path, change) -> None:
    kept, state = load_tensors(out / "checkpoint.safetensors")
    change(kept, state)
    save_tensors(out / "checkpoint.safetensors", kept, state)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept, state: kept.update({"optimizer.0.exp_avg": torch.zeros(1)}),
        lambda kept, state: kept.update({"optimizer.0.step": torch.zeros(3)}),
        lambda kept, state: kept.pop("optimizer.1.exp_avg_sq"),
        lambda kept, state: kept.update({"optimizer.77.exp_avg": torch.zeros(1)}),
        lambda kept, state: kept.update({"model.head.bias": kept["model.head.bias"].double()}),
        lambda kept, state: kept["average.module.head.bias"].fill_(float("nan")),
        lambda kept, state: kept["optimizer.0.exp_avg_sq"].fill_(float("inf")),
        lambda kept, state: state.update(step="many"),
        lambda kept, state: state.update(step=-4),
        lambda kept, state: state.pop("seconds"),
        lambda kept, state: kept.update({"random.tiles": torch.zeros(3, dtype=torch.uint8)}),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(pair, tmp_path, change):
    train(small(steps=2), pair, None, tmp_path, progress=False)
    edited(tmp_path, change)
    with pytest.raises(InputError, match="does not fit this run's configuration|holds NaN or infinite values"):
        train(small(steps=4), pair, None, tmp_path, resume=True, progress=False)


def test_no_damage_of_the_weights_is_silent(pair, tmp_path, rng):
    train(small(steps=2), pair, None, tmp_path, progress=False)
    path = tmp_path / "model.safetensors"
    good, (truth, state) = path.read_bytes(), load_tensors(path)
    for place in rng.choice(len(good) * 8, 300, replace=False):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            got, got_state = load_tensors(path)
        except InputError:
            continue
        # a bit of the padding
        assert got_state == state and all(torch.equal(got[name], truth[name]) for name in truth)
    path.write_bytes(good)
    save_tensors(path, {**truth, "head.bias": truth["head.bias"] * float("nan")}, state)
    with pytest.raises(InputError, match=r"holds NaN or infinite values \(head.bias\)"):
        load_model(tmp_path)


def test_a_damaged_log_does_not_block_the_run(pair, tmp_path):
    train(small(steps=6), pair, None, tmp_path, progress=False)
    text = (tmp_path / "metrics.csv").read_text()
    said: list[str] = []
    for damage in ("x,y\n1,2\n", text + "7,abc,,\n", "\x00", text.replace("step", "stop")):
        (tmp_path / "metrics.csv").write_text(damage)
        train(small(steps=8), pair, None, tmp_path, resume=True, progress=False, announce=said.append)
    assert any("is damaged" in line for line in said)
    log = MetricsLog(tmp_path)
    assert log.keep_until(8) and log.rows[-1]["step"] == 8


HOSTILE = {
    "model": [None, {}, [], "unet", {"name": 3}, {"name": "unet", "in_channels": 10**9, "num_classes": 2}],
    "amp": [None, 1, "yes"],
    "tile": [None, 1.5, "32", True, -3, 10**30],
    "learning_rate": [None, "x", float("inf"), float("nan"), True, [1]],
    "betas": [[0.9], [0.9, "x"], 3, {}],
    "elastic_grid": [[3], [3, None], "33"],
    "threshold": ["x", 2.0, []],
    "loss": [None, 3, ["dice"], {}],
    "loss_options": [None, [], 3],
    "data": [None, 3, "x"],
    "tta": [[8], {}, "8"],
    "steps": ["many", 2.5, False],
}


NESTED: dict[str, list[Any]] = {
    "loss": [None, 3, "dice", {"name": 3}, {"options": []}, {"colour": 1}, {"w0": -1}],
    "optimizer": ["sgd", {"name": "adamm"}, {"betas": [0.9]}, {"betas": "99"}, {"learning_rate": {}}],
    "augmentation": [[], {"elastic_grid": [3, None]}, {"field": 1}, {"rotation": 181}, {"padding": "reflect"}],
    "budget": [None, {}, {"steps": 2.5}, {"steps": 1, "minutes": 1}],
    "checkpoints": [3, {"validations": -1}, {"steps": 0}],
    "learning_rate": [1e-3],
    "tile": [None, "32"],
}


@pytest.mark.parametrize(
    ("flat", "name", "value"),
    [(table is HOSTILE, name, value) for table in (HOSTILE, NESTED) for name in table for value in table[name]],
)
def test_a_hostile_config_is_one_clear_error(tmp_path, flat, name, value):
    record = {**(small().flat() if flat else dataclasses.asdict(small())), name: value}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"is not the config\.json of a training run") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "changes", [{"depth": 40}, {"base_channels": 2**40}, {"colour": 1}, {"padding": 3}, {"norm": []}, {"name": "vnet"}]
)
def test_a_hostile_network_is_one_clear_error(pair, tmp_path, changes):
    train(small(steps=1), pair, None, tmp_path, progress=False)
    record = json.loads((tmp_path / "config.json").read_text())
    record["model"].update(changes)
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError):
        load_model(tmp_path)


def test_validation_images_that_cannot_judge_choose_nothing(pair, tmp_path):
    assert cannot_judge(pair, "score") is None
    validation = pair.select([3])
    validation.labels = np.zeros_like(validation.labels)
    assert "background only" in cannot_judge(validation, "score") and cannot_judge(validation, "loss") is None
    said: list[str] = []
    summary = train(small(), pair, validation, tmp_path / "a", progress=False, announce=said.append)
    assert summary.validation is None and sum("cannot choose" in line for line in said) == 1
    kept, average = load_tensors(tmp_path / "a" / "model.safetensors")[0], tensors(tmp_path / "a")
    assert all(torch.equal(kept[name], average[f"average.module.{name}"]) for name in kept), "the last weights"
    validation.ignored = np.ones(validation.labels.shape, bool)
    train(small(), pair, validation, tmp_path / "b", progress=False, announce=said.append)
    assert "no pixel of the validation images counts" in said[-1]


def test_a_full_disk_is_an_os_error_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path / "c.safetensors")
    weights = {"model.a": torch.arange(4.0)}
    writer.submit(weights, {"step": 1})
    weights["model.a"].fill_(7)  # what is written is a copy
    writer.wait()
    good = load_tensors(tmp_path / "c.safetensors")[0]["model.a"]
    assert good.tolist() == [0, 1, 2, 3]

    def full(tensors, filename, metadata):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unet_fast.train.checkpoint.save_file", full)
        writer.submit(weights, {"step": 2})
        with pytest.raises(OSError, match="cannot write .*No space left on device"):
            writer.wait()
    writer.submit({"model.a": torch.tensor([1.0, float("nan")])}, {"step": 3})
    with pytest.raises(InputError, match="diverged"):
        writer.wait()
    assert torch.equal(load_tensors(tmp_path / "c.safetensors")[0]["model.a"], good)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_what_a_killed_run_left_goes_when_it_goes_on(pair, tmp_path):
    left = tmp_path / ".unet-fast-0123456789ab.safetensors"
    left.write_bytes(b"half")
    train(small(steps=1), pair, None, tmp_path, progress=False)
    assert not left.exists() and run_folder.CONFIG in os.listdir(tmp_path)
