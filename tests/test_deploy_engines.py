"""Engines: each computes what torch computes, within its precision; auto measures once and remembers; files load back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unet_fast as uf
from tests import processes
from tests.exports import graphs_made_once  # noqa: F401
from tests.networks import grey, lively
from unet_fast import train
from unet_fast.deploy import choose, engines
from unet_fast.deploy.description import Description
from unet_fast.errors import BackendError, InputError
from unet_fast.predict import OverlapTile
from unet_fast.remembered import cache_file
from unet_fast.train.run_folder import save_model


@pytest.fixture(autouse=True)
def onnx_libraries() -> None:
    """Imported by the tests, because that takes seconds in every process that only collects them."""
    pytest.importorskip("onnxscript", reason="the extra unet_fast[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra unet_fast[onnxruntime] is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> uf.Run:
    config = train.default_config(
        "cpu", steps=1, base_channels=4, depth=2, tile=32, image_padding="zeros", threshold=0.4, tta=1, amp=False
    )
    folder = tmp_path_factory.mktemp("run")
    config.save(folder / "config.json")
    save_model(folder, lively(uf.models.create(**config.model), np.random.default_rng(11)), {})
    return uf.Run.load(folder, "cpu")


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_engines_compute_what_torch_computes(run, rng, backend):
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra unet_fast[openvino] is not installed")
    image = grey(rng, 1, 1, 70, 83)
    expected = run.predict(image, tile=40)
    predictor = run.predictor(engine=backend, tile=40, batch_size=3)
    assert isinstance(predictor.tiles.model, engines.Engine)
    np.testing.assert_allclose(predictor(image), expected, atol=1e-5)
    report = predictor.tiles.model.report()
    assert (report.backend, report.precision) == (backend, "float32") and backend in str(report)


def test_bfloat16_is_near(run, generator):
    images = torch.randn(2, 1, 64, 64, generator=generator)
    expected = run.model(images).detach()
    found = uf.deploy.engine(run, backend="torch", precision="bfloat16")(images)
    apart = float((found - expected).abs().max() / expected.abs().max())
    assert found.dtype == torch.float32 and 0 < apart < 0.05


def test_auto_takes_the_fastest_once(run, monkeypatch):
    calls: list[str] = []

    def measured(model, description, names, *_):
        calls.append(",".join(names))
        return {name: 0.5 if name == "onnxruntime" else 1.0 for name in names}

    monkeypatch.setattr(choose, "measure", measured)
    said: list[str] = []
    assert uf.deploy.engine(run, tile=64, announce=said.append).backend == "onnxruntime"
    assert uf.deploy.engine(run, tile=64, announce=said.append).backend == "onnxruntime"
    assert len(calls) == 1 and "torch" in calls[0] and "compile" not in calls[0]
    assert "measured at 1 x" in said[0] and "measured here before" in said[1] and "onnxruntime 500.0 ms" in said[1]
    assert json.loads(cache_file("engines").read_text())
    # another tile, other threads: measured anew; a damaged memory is forgotten
    uf.deploy.engine(run, tile=128)
    cache_file("engines").write_text("{")
    uf.deploy.engine(run, tile=64)
    assert len(calls) == 3


def test_a_measurement_measures_all(run):
    names = ["torch", "onnxruntime"]
    description = Description.of(run.model, run.settings)
    seconds = choose.measure(run.model, description, names, "float32", "cpu", (1, 64))
    assert set(seconds) == set(names) and all(0 < value < 60 for value in seconds.values())


def test_engines_that_are_close_are_measured_for_longer(run, monkeypatch):
    """One engine is slow in its first rounds, by chance; it is the fastest all the same."""
    turns = dict.fromkeys(("torch", "onnxruntime", "openvino"), 0)

    def timed(network, images):
        turns[network] += 1
        return {"torch": 1.0, "onnxruntime": 1.1 if turns[network] <= choose.ROUNDS else 0.9, "openvino": 1.5}[network]

    monkeypatch.setattr(engines, "create", lambda model, description, name, *_, **__: name)
    monkeypatch.setattr(engines, "written", lambda *_: None)
    monkeypatch.setattr(choose, "timed", timed)
    description = Description.of(run.model, run.settings)
    found = choose.measure(run.model, description, list(turns), "float32", "cpu", (1, 64))
    assert min(found, key=lambda name: found[name]) == "onnxruntime"
    assert turns["openvino"] == choose.ROUNDS + 1 and turns["torch"] > 2 * choose.ROUNDS  # one to warm up


def test_an_onnx_file_predicts_as_its_run(run, rng, tmp_path):
    run.export(tmp_path / "m.onnx")
    image = (1000 * grey(rng, 1, 1, 60, 70) + 500).astype(np.uint16)
    loaded = uf.Run.load(tmp_path / "m.onnx")
    np.testing.assert_allclose(loaded.predict(image), run.predict(image), atol=1e-5)
    assert loaded.settings.threshold == 0.4 and loaded.settings.padding == "zeros" and loaded.settings.normalized
    # a bare network has no normalisation
    uf.deploy.export(run.model, tmp_path / "bare.onnx")
    bare = uf.Run.load(tmp_path / "bare.onnx").predict(grey(rng, 1, 1, 60, 70), padding="mirror")
    assert bare.shape == (1, 2, 60, 70)
    with pytest.raises(BackendError, match="cannot run an ONNX file"):
        uf.deploy.engine(tmp_path / "m.onnx", backend="torch")
    (tmp_path / "not.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not an ONNX file"):
        uf.Run.load(tmp_path / "not.onnx")


def test_an_onnx_file_of_others_is_refused(tmp_path):
    import onnx

    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, ["n"]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)]),
        tmp_path / "o.onnx",
    )
    with pytest.raises(InputError, match="does not say which sizes"):
        uf.Run.load(tmp_path / "o.onnx")


def test_what_engines_refuse(run, monkeypatch):
    for options, error, message in (
        ({"backend": "tensorrt"}, InputError, "backend is 'tensorrt'"),
        ({"backend": "torch", "precision": "int8"}, InputError, "precision is 'int8'"),
        ({"backend": "onnxruntime", "precision": "bfloat16"}, BackendError, "float32 only"),
        ({"backend": "cuda-graph"}, BackendError, "needs a CUDA device"),
    ):
        with pytest.raises(error, match=message):
            uf.deploy.engine(run, **options)
    with pytest.raises(InputError, match="expected a network, a run"):
        uf.deploy.engine(torch.nn.ReLU())
    with pytest.raises(InputError, match="an engine stays on the device"):
        OverlapTile(uf.deploy.engine(run, backend="torch"), device="cpu")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'unet_fast\[openvino\]'"):
        uf.deploy.engine(run, backend="openvino")


def test_nothing_is_loaded_before_it_is_asked_for():
    code = "import sys, unet_fast as uf; uf.deploy.engine, uf.Run; print([m for m in ('onnx', 'onnxruntime', 'openvino', 'bioimageio', 'zarr', 'dask') if m in sys.modules])"
    assert processes.run("-c", code, warm="torch").stdout.strip() == b"[]"
