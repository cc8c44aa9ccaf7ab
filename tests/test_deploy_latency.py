"""Latency: what is measured and written; figures are not compared with any bound."""

from __future__ import annotations

import json

import numpy as np
import pytest

import unet_fast as uf
from tests.networks import lively
from unet_fast.deploy.latency import Row
from unet_fast.errors import InputError
from unet_fast.plots import latency_picture


def test_a_run_of_latency(rng, tmp_path):
    net = lively(uf.UNet(base_channels=4, depth=2), rng).eval()
    found = uf.deploy.latency(
        net, engines=["torch", "torch bfloat16", "cuda-graph"], tiles=[30], batches=[1, 2], seconds=0
    )
    assert [(row.name, row.tile, row.batch) for row in found.rows] == [
        (name, 32, batch) for batch in (1, 2) for name in ("torch", "torch bfloat16", "cuda-graph")
    ]
    for row in found.rows:
        if row.engine == "cuda-graph":
            assert "CUDA device" in row.failed and not row.milliseconds
            continue
        times = np.array(row.milliseconds)
        assert len(times) == row.rounds >= 10 and row.p50 == np.percentile(times, 50)
        assert times.min() <= row.p50 <= row.p90 <= row.p99 <= times.max()
        assert row.images_a_second == pytest.approx(1000 * row.batch / row.p50)
        assert row.cold_seconds > 0 and 50 < row.peak_mib < 10_000
        assert (row.difference == 0) == (row.precision == "float32") and row.difference < 0.1
    table = str(found)
    assert "p99" in table and "torch bfloat16" in table and "CUDA device" in table
    found.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["latency.csv", "latency.json", "latency.png"]
    written = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert written["conditions"]["network"] == net.config and len(written["rows"]) == 6
    assert len((tmp_path / "out" / "latency.csv").read_text().splitlines()) == 7


@pytest.mark.usefixtures("real_pictures")
def test_the_picture_shows_what_ran(tmp_path):
    from dataclasses import asdict

    from PIL import Image

    rows = [Row(name, "float32", tile, batch, 1, tile, *[batch * 5.0] * 3, 200.0, 10, 0.0, milliseconds=[batch * 5.0 + i for i in range(10)])
            for name in ("torch", "openvino") for tile in (64, 128) for batch in (1, 8)]  # fmt: skip
    conditions = {"network": {"name": "unet"}, "parameters": 10**6, "machine": "a machine"}
    latency_picture(conditions, [asdict(row) for row in rows], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert picture.shape[1] == 1200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(InputError, match="no engine ran"):
        latency_picture(conditions, [asdict(Row("torch", "float32", 1, 1, 1))], tmp_path / "p.png")


def test_what_latency_refuses(rng):
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    for options, message in (
        ({"engines": "tensorflow"}, "engine is 'tensorflow'"),
        ({"engines": ["torch int8"]}, "engine is 'torch int8'"),
        ({"tiles": [0]}, r"tiles is \[0\]"),
        ({"batches": []}, r"batches is \[\]"),
    ):
        with pytest.raises(InputError, match=message):
            uf.deploy.latency(net, **options)
