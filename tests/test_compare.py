"""Several networks side by side: what the table holds, and that its figures are true."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.test_cli import run
from unet_fast import data, models
from unet_fast.compare import COLUMNS, compare_models, forward_gflop
from unet_fast.data import synthetic
from unet_fast.errors import InputError


def test_gflop_is_that_of_the_paper():
    assert forward_gflop({"name": "unet", "in_channels": 1, "num_classes": 2}, 388) == pytest.approx(301, abs=0.5)


def test_gflop_counts_every_convolution():
    # 8 x 8 pixels: 3x3 convolutions 1-2-2 on 64, 2-4-4 on 16, 4-2-2 on 64, up 4-2 with 2x2, head 2-2
    macs = 64 * 9 * (2 + 4) + 16 * 9 * (8 + 16) + 64 * 4 * 2 + 64 * 9 * (8 + 4) + 64 * 4
    network = {"name": "unet", "base_channels": 2, "depth": 1, "padding": "same", "dropout": 0.0}
    assert forward_gflop(network, 8) == pytest.approx(2 * macs / 1e9)


@pytest.mark.usefixtures("real_pictures")
def test_the_command_line_compares(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    images, instances = synthetic.nuclei(4, size=(48, 64), seed=4)
    data.write_stack(tmp_path / "set" / "images.tif", images)
    data.write_stack(tmp_path / "set" / "instances.tif", instances.astype(np.uint16))
    said = run("compare", "--data", tmp_path / "set", "--models", "unet,recipe:batch-norm", "--steps", "2", "--val", "3",
               "--base-channels", "2", "--depth", "2", "--tile", "30", "--out", tmp_path / "out",
               "--label-kind", "instances", "--device", "cpu")  # fmt: skip
    assert "pixel" in said and "recipe:batch-norm" in said
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in rows] == ["unet", "recipe:batch-norm"]
    for row, folder in zip(rows, ("unet", "recipe-batch-norm"), strict=True):
        assert tuple(row) == COLUMNS
        config = json.loads((tmp_path / "out" / folder / "config.json").read_text())
        model = models.create(**config["model"])
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert (row["tile"], row["steps"]) == (32, 2), "rounded up to what the network can put out"
        assert 0 <= row["pixel_error"] <= 1 and 0 <= row["dice"] <= 1 and 0 <= row["average_precision"] <= 1
        assert config["separate"] == ("cores" if row["name"] == "unet" else "ridge")
        assert min(row["ms_per_step"], row["ms_per_image"], row["gflop"]) > 0
        assert row["memory_mb"] is None or row["memory_mb"] >= 0
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["unet", "recipe:batch-norm"]
    assert np.asarray(Image.open(tmp_path / "out" / "compare.png").convert("L")).std() > 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no networks to compare"),
        (["unet", "unet"], "named twice"),
        (["unet", "vnet"], "model is 'vnet', expected one of"),
        (["recipe:mine"], "recipe is 'mine', expected one of"),
    ],
)
def test_names_are_checked_before_anything_is_trained(names, message, rng, tmp_path):
    labels = rng.integers(0, 2, (2, 16, 16)).astype(np.int32)
    pair = data.Pair(rng.random((2, 1, 16, 16), dtype=np.float32), labels, "mask", 2, ["a", "b"])
    with pytest.raises(InputError, match=message):
        compare_models(names, pair, pair, tmp_path, device="cpu", steps=1)
    with pytest.raises(InputError, match="leaves one pixel at the lowest level"):
        compare_models(["unet", "unet-bn"], pair, pair, tmp_path, device="cpu", steps=1, tile=16, batch_size=1)
    assert not list(tmp_path.glob("*/config.json"))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").touch()
    with pytest.raises(InputError, match="holds the run of an earlier comparison; choose another --out"):
        compare_models(["unet-em", "unet"], pair, pair, tmp_path, device="cpu", steps=1)
