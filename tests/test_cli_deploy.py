"""``unet-fast export``, ``latency`` and ``predict --engine`` as a user meets them."""

from __future__ import annotations

import importlib
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

import unet_fast as uf
from tests.exports import graphs_made_once  # noqa: F401
from tests.networks import lively
from tests.test_cli import run
from unet_fast import train
from unet_fast.deploy.description import Description
from unet_fast.train.checkpoint import save_tensors
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
    assert "none is given" in run(*given, "--precision", "bfloat16", fails=True)
    assert "min_size is -1" in run(*given, "--output", "instances", "--min-size", "-1", fails=True)


@pytest.fixture
def package(files: Path) -> Path:
    """An exported .zip as far as predict reads it."""
    network = uf.Run.load(files / "run", "cpu")
    state = {"description": Description.of(network.model, network.settings).metadata()}
    save_tensors(files / "model.safetensors", dict(network.model.state_dict()), state)
    with zipfile.ZipFile(files / "m.zip", "w") as archive:
        archive.write(files / "model.safetensors", "model.safetensors")
    return files / "m.zip"


def test_packages_that_are_damaged_locked_or_too_large(files, package):
    given = ["--images", files / "a.tif", "--out", files / "p.tif", "--device", "cpu"]
    run("predict", package, *given)
    whole = package.read_bytes()
    weights = bytearray((files / "model.safetensors").read_bytes())
    weights[-9] ^= 1
    with zipfile.ZipFile(files / "changed.zip", "w") as archive:
        archive.writestr("model.safetensors", bytes(weights))
    locked = bytearray(whole)
    locked[6] |= 1  # encrypted, says the file's header and the list at the end
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    (files / "locked.zip").write_bytes(locked)
    with zipfile.ZipFile(files / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.safetensors", "w", force_zip64=True) as file:
            for _ in range(17):
                file.write(bytes(2**26))
    os.mkfifo(files / "pipe.zip")
    for name, message in (
        ("changed.zip", "model.safetensors in .*changed.zip is damaged"),
        ("locked.zip", "password required"),
        ("bomb.zip", "more than the limit of"),
        ("pipe.zip", "is a pipe, expected a regular file"),
        ("none.zip", "none.zip does not exist"),
        ("none.onnx", "none.onnx does not exist"),
    ):
        assert re.search(message, run("predict", files / name, *given, fails=True)), name


def test_export_and_latency_check_before_they_work(files, package, monkeypatch):
    for module, function in (("export", "plain_copy"), ("latency", "_saved")):
        working = importlib.import_module(f"unet_fast.deploy.{module}")
        monkeypatch.setattr(working, function, lambda *_: pytest.fail("work was done"))
    about = ["--name", "Nuclei", "--license", "MIT", "--author", "A. Person"]
    (files / "link.zip").symlink_to(package)
    before = package.read_bytes()
    for out in (package, files / "link.zip"):
        assert "would be overwritten" in run("export", package, "--out", out, *about, fails=True)
    assert package.read_bytes() == before
    (files / "text.md").write_bytes("gefärbt".encode("latin-1"))
    said = run(
        "export", files / "run", "--out", files / "n.zip", *about, "--documentation", files / "text.md", fails=True
    )
    assert "is not text in UTF-8" in said
    for out, options, message in (
        (files / "a.tif", [], "cannot create the folder"),
        (files / "l", ["--threads", "1000000"], "expected numbers of at most 1024"),
        (files / "l", ["--threads", "1" + "0" * 30], "expected numbers of at most 1024"),
        (files / "l", ["--tiles", "1" + "0" * 30], "expected numbers of at most 1048576"),
        (files / "l", ["--batches", "1" + "0" * 30], "expected numbers of at most 1048576"),
    ):
        assert message in run("latency", files / "run", "--out", out, "--device", "cpu", *options, fails=True)
