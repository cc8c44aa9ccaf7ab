"""bioimage.io packages: their own test passes, sizes and halo are those of the network, and the network comes back."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

import unet_fast as uf
from tests.exports import graphs_made_once  # noqa: F401
from tests.networks import grey, lively
from unet_fast.errors import InputError

ABOUT = {"name": "Nuclei of the test", "license": "CC-BY-4.0", "authors": ["A. Person"]}


@pytest.fixture(autouse=True)
def bioimageio_core() -> None:
    """Imported by the tests, because that takes seconds in every process that only collects them."""
    pytest.importorskip("bioimageio.core", reason="the extra unet_fast[bioimageio] is not installed")


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_package_passes_the_test_of_bioimageio_and_comes_back(rng, tmp_path, padding):
    import bioimageio.core
    from bioimageio.spec import load_description

    net = lively(uf.UNet(1, 3, base_channels=4, depth=1, padding=padding), rng).eval()
    path = tmp_path / "m.zip"
    done = uf.deploy.export(net, path, **ABOUT, image=grey(rng, 1, 50, 60))
    assert done["difference"] <= 1e-4
    assert bioimageio.core.test_model(path, weight_format="onnx").status == "passed"
    described = load_description(path)
    assert (described.name, str(described.license), described.authors[0].name) == tuple(
        value if isinstance(value, str) else value[0] for value in ABOUT.values()
    )
    y_in, y_out = described.inputs[0].axes[2], described.outputs[0].axes[2]
    assert y_in.size.step == net.geometry.step and y_out.size.offset == -2 * net.margin
    assert getattr(y_out, "halo", 0) == net.geometry.spoilt
    for k in range(3):
        assert net.geometry.accepts(y_in.size.min + k * y_in.size.step)
    loaded = uf.Run.load(path, "cpu")
    x = torch.randn(1, 1, 60, 64)
    torch.testing.assert_close(loaded.model(x), net(x))
    with zipfile.ZipFile(path) as archive:
        assert {"rdf.yaml", "model.onnx", "model.pt", "model.safetensors", "cover.png"} <= set(archive.namelist())


def test_what_packages_refuse(rng, tmp_path):
    net = lively(uf.UNet(base_channels=4, depth=2), rng)
    for missing in ABOUT:
        about = {key: value for key, value in ABOUT.items() if key != missing}
        with pytest.raises(InputError, match=f"needs {missing}"):
            uf.deploy.export(net, tmp_path / "m.zip", **about)
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a zip file"):
        uf.Run.load(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x.txt", np.zeros(1).tobytes())
    with pytest.raises(InputError, match="not a package of this program"):
        uf.Run.load(tmp_path / "other.zip")
