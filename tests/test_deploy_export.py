"""Export: every network as ONNX of standard operators, any batch and size; what is written inside; what is refused."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import unet_fast as uf
from tests.exports import graphs_made_once  # noqa: F401
from tests.networks import lively, short_resnets  # noqa: F401
from unet_fast.deploy.description import Description
from unet_fast.deploy.program import sample_sizes
from unet_fast.errors import BackendError, InputError

onnx = pytest.importorskip("onnx", reason="the extra unet_fast[onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra unet_fast[onnxruntime] is not installed")


# one level shows all that these have; the U-Net and its form for any size have two, as the tests after the first ask
DEPTHS = {"unet-2015-release": 1, "unet-em": 1, "unet-dental": 1}


def small(name: str) -> uf.models.SegmentationModel:
    """Always with the same weights."""
    known = uf.models.registry.defaults(name)
    wished = {"base_channels": 4, "depth": DEPTHS.get(name, 2)}
    options = {key: value for key, value in wished.items() if key in known}
    torch.manual_seed(2)
    return lively(uf.models.create(name, **options), np.random.default_rng(2)).eval()


@pytest.mark.usefixtures("short_resnets")
@pytest.mark.parametrize("name", uf.models.list())
def test_every_network_in_onnx_runtime(name, generator, tmp_path):
    model = small(name)
    path = tmp_path / "model.onnx"
    report = uf.deploy.export(model, path)
    assert report["difference"] <= 1e-4
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"} and not proto.functions
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first, second, third = sample_sizes(model.geometry)
    # batches and sizes that export itself did not compare
    shapes = [(3, 1, first, second), (1, 1, third, third), (2, 1, second, second)]
    if model.geometry.any_from is not None:  # the smallest of the file, and odd ones at every level
        shapes += [(1, 1, 4, 5), (2, 1, 61, 47), (1, 1, 54, 58)]
    for shape in shapes:
        x = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = model(x)
        found = session.run(None, {"images": x.numpy()})[0]
        assert found.shape == tuple(expected.shape)
        assert np.abs(found - expected.numpy()).max() <= 1e-4 * max(1, float(expected.abs().max()))


def test_the_file_says_what_its_reader_must_know(tmp_path):
    model = small("unet")
    uf.deploy.export(model, tmp_path / "m.onnx", format="onnx")
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert "44 + k * 4" in said["sizes"] and "20 pixels smaller" in said["sizes"]
    description = Description.read(said, "m.onnx")
    assert description.geometry == model.geometry and description.model == model.config
    assert not description.normalized and "none" in said["normalization"]


def test_a_network_of_any_size_says_from_which_on_its_file_is(tmp_path):
    model = small("unet-bn")
    assert model.geometry.any_from == 1
    uf.deploy.export(model, tmp_path / "m.onnx")
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert "H and W are 4 or more; tiles of one image should be multiples of 4" in said["sizes"]
    assert Description.read(said, "m.onnx").geometry == dataclasses.replace(model.geometry, any_from=4)
    # a graph of one size is the network of that size, with the levels that it uses there
    x = torch.randn(1, 1, 3, 7)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    uf.deploy.export(small("unet"), path)
    whole = path.read_bytes()
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert uf.Run.load(path).model.backend == "onnxruntime"
    weights = max((each.raw_data for each in proto.graph.initializer), key=len)
    middle = whole.index(weights) + len(weights) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    onnx.checker.check_model(onnx.load_from_string(changed))  # it would run
    for data, message in (
        (changed, "its checksum differs"),
        (whole[:-1], "its checksum differs"),
        (whole[:middle], "is not an ONNX file that unet-fast export wrote"),
        (whole + whole[-10:], "its checksum differs"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            uf.Run.load(path)


def test_torch_export_needs_no_operator_of_ours(rng, generator, tmp_path):
    model = lively(uf.UNet(base_channels=4, depth=1), rng).eval()
    uf.deploy.export(model, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2")
    assert not [node for node in program.graph.nodes if "unet_fast" in str(node.target)]
    x = torch.randn(3, 1, 60, 44, generator=generator)
    torch.testing.assert_close(program.module()(x), model(x).detach(), atol=1e-4, rtol=1e-4)


def test_the_network_stays_as_it_was(rng, tmp_path):
    model = lively(uf.UNet(base_channels=4, depth=1, fused=True), rng).train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    uf.deploy.export(model, tmp_path / "m.pt2")
    assert model.training and model.fused is True
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_export_refuses(rng, tmp_path, monkeypatch):
    model = lively(uf.UNet(base_channels=4, depth=2), rng)
    for path, options, message in (
        ("m.txt", {}, "no format is named like 'm.txt'"),
        ("m.onnx", {"format": "torch-export"}, "end in .pt2"),
        ("m.onnx", {"format": "tf"}, "format is 'tf'"),
        ("m.onnx", {"license": "MIT"}, "license describe a bioimage.io package"),
    ):
        with pytest.raises(InputError, match=message):
            uf.deploy.export(model, tmp_path / path, **options)
    with pytest.raises(InputError, match="expected a network of unet_fast.models"):
        uf.deploy.export(torch.nn.Conv2d(1, 1, 1), tmp_path / "m.onnx")
    # a file that computes something else gets no name
    monkeypatch.setattr(importlib.import_module("unet_fast.deploy.export"), "difference", lambda *_: 2e-4)
    with pytest.raises(BackendError, match="would differ from torch by 0.0002"):
        uf.deploy.export(small("unet"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_its_cure(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(BackendError, match=r"pip install 'unet_fast\[onnx\]'"):
        uf.deploy.export(lively(uf.UNet(base_channels=4, depth=2), rng), Path(tmp_path) / "m.onnx")
