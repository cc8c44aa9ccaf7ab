"""The page about the family: its examples run, its commands exist, and its table comes from runs that can be repeated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import family
from unet_fast import data, models, nn, recipes
from unet_fast.data import synthetic
from unet_fast.train import LOSSES

TEXT = (Path(__file__).parents[2] / "docs" / "family.md").read_text()


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "family.md", "exec"), space)
    net, small = space["net"], space["small"]
    assert isinstance(net, torch.nn.Module) and isinstance(small, torch.nn.Module)
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert f"{share:.1%}".replace("%", " %") in TEXT


def test_the_page_names_everything():
    for name in [*(name for name in models.list() if "resnet" not in name), "unet-resnet18", *LOSSES]:
        assert f"`{name}`" in TEXT, name
    for name in (name for name in nn.__all__ if "Loss" in name):
        assert f"`{name}`" in TEXT, name
    assert set(family.SAID) == {*recipes.names(), family.DEFAULTS}


@pytest.fixture
def folder(tmp_path) -> Path:
    images, instances = synthetic.nuclei(4, size=(64, 64), seed=3)
    data.write_stack(tmp_path / "sets" / "dic-hela" / "images.tif", images)
    data.write_stack(tmp_path / "sets" / "dic-hela" / "instances.tif", instances.astype(np.uint16))
    return tmp_path / "sets"


def test_runs_are_made_once_and_become_a_table(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(family, "BASE_CHANNELS", 2)
    monkeypatch.setattr(family, "TILE", 32)
    out = tmp_path / "family.json"
    arguments = [
        "--data",
        str(folder),
        "--sets",
        "dic-hela",
        "--only",
        "keras,defaults",
        "--tiles",
        "3",
        "--seeds",
        "0,1",
        "--out",
        str(out),
    ]
    family.main(arguments)
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert [(row["system"], row["seed"]) for row in rows] == [
        ("keras", 0),
        ("defaults", 0),
        ("keras", 1),
        ("defaults", 1),
    ]
    assert [row["steps"] for row in rows] == [2, 3, 2, 3]  # 3 tiles in batches of 2 and of 1
    assert rows[1]["loss"] != rows[3]["loss"]
    assert result["rows"][0]["images"] == {"training": 2, "held_out": 2}
    for row in result["rows"]:
        assert 0 <= row["pixel_error"] <= 1 and 0 <= row["seg"] <= 1
    text = family.table(result)
    errors = [row["pixel_error"] for row in rows if row["system"] == "keras"]
    assert f"| keras | EM: accuracy 0.919 | E {sum(errors) / 2:.3f} ± {abs(errors[0] - errors[1]) / 2:.3f} / " in text
    assert (
        "tiles per run, and channels at the first level: dic-hela 3, 2;" in text
        and "the mean of 2 seeds ± half their range" in text
    )
    monkeypatch.setattr(family, "run", lambda *_: pytest.fail("trained again"))
    family.main(arguments)
    assert json.loads(out.read_text())["rows"] == result["rows"]
    assert f"wrote {out}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unknown: emm; there are paper-2015, em"):
        family.main(["--data", str(folder), "--only", "emm"])


def test_the_same_run_gives_the_same_scores(folder, monkeypatch):
    monkeypatch.setattr(family, "BASE_CHANNELS", 2)
    monkeypatch.setattr(family, "TILE", 32)
    first, second = (family.run("defaults", folder / "dic-hela", 2, 0) for _ in range(2))
    timing = ("seconds", "seconds_an_image")
    assert {k: v for k, v in first.items() if k not in timing} == {k: v for k, v in second.items() if k not in timing}
