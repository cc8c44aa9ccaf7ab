"""``unet-fast export``, ``latency`` and ``predict --engine`` as a user meets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import unet_fast as uf
from tests.networks import lively
from tests.test_cli import run
from unet_fast import train
from unet_fast.train.run_folder import save_model


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = train.default_config("cpu", steps=1, base_channels=4, depth=1, tile=32, tta=1, amp=False)
    (tmp_path / "run").mkdir()
    config.save(tmp_path / "run" / "config.json")
    save_model(tmp_path / "run", lively(uf.models.create(**config.model), rng), {})
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 4000, (2, 70, 90), dtype=np.uint16), photometric="minisblack")
    return tmp_path


def test_export_and_predict_with_the_file(files):
    pytest.importorskip("onnxscript", reason="the extra unet_fast[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra unet_fast[onnxruntime] is not installed")
    said = run("export", files / "run", "--out", files / "m.onnx")
    assert f"wrote {files / 'm.onnx'}: onnx" in said and "differs from torch by at most" in said
    given = ["--images", files / "a.tif", "--output", "probabilities", "--device", "cpu"]
    run("predict", files / "run", *given, "--out", files / "p.tif")
    run("predict", files / "m.onnx", *given, "--out", files / "o.tif")
    run("predict", files / "run", *given, "--out", files / "e.tif", "--engine", "onnxruntime")
    expected = tifffile.imread(files / "p.tif")
    for name in ("o.tif", "e.tif"):
        np.testing.assert_allclose(tifffile.imread(files / name), expected, atol=1e-5)
    line = run("export", files / "run", "--out", files / "m.zip", "--name", "Nuclei", fails=True)
    assert "needs license" in line
    line = run("export", files / "run", "--out", files / "m.xyz", fails=True)
    assert "no format is named like 'm.xyz'" in line


def test_latency(files):
    said = run("latency", files / "run", "--engines", "torch", "--tiles", "32,64", "--no-cold", "--out", files / "l",
               "--device", "cpu")  # fmt: skip
    assert "p99" in said and (files / "l" / "latency.png").exists()
    assert "--tiles is '0'" in run("latency", files / "run", "--tiles", "0", "--out", files / "l", fails=True)
    assert "expected all, or some of" in run(
        "latency", files / "run", "--engines", "x", "--out", files / "l", fails=True
    )


def test_what_predict_refuses_of_engines(files):
    given = ["predict", files / "run", "--images", files / "a.tif", "--out", files / "p.tif", "--device", "cpu"]
    assert "backend is 'fast'" in run(*given, "--engine", "fast", fails=True)
    assert "needs a CUDA device" in run(*given, "--engine", "cuda-graph", fails=True)
