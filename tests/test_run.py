"""A trained run as an object: every decision of the run reaches the prediction, compared with a hand-made chain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import unet_fast as uf
from tests.networks import grey, lively
from unet_fast import train
from unet_fast.errors import InputError
from unet_fast.predict import OverlapTile
from unet_fast.train.run_folder import save_model


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A run whose padding and threshold are not the defaults."""
    config = train.default_config(
        "cpu", steps=1, base_channels=4, depth=2, tile=32, image_padding="zeros", threshold=0.3, tta=7
    )
    model = lively(uf.models.create(**config.model), rng)
    (tmp_path / "run").mkdir()
    config.save(tmp_path / "run" / "config.json")
    save_model(tmp_path / "run", model, {})
    return tmp_path / "run"


def by_hand(run: uf.Run, image: np.ndarray) -> np.ndarray:
    """Probabilities of the foreground (N, H, W), every decision written out."""
    images = image.astype(np.float64)
    mean, std = images.mean((2, 3), keepdims=True), images.std((2, 3), keepdims=True)
    tiles = OverlapTile(run.model, tile=64, padding="zeros", tta=7)
    return np.asarray(tiles(((images - mean) / std).astype(np.float32)))[:, 1]


def test_a_run_predicts_as_its_settings_say(folder, rng, monkeypatch):
    run = uf.Run.load(folder, "cpu")
    assert run.settings.threshold == 0.3 and run.device == torch.device("cpu") and not run.model.training
    monkeypatch.setattr("unet_fast.train.prediction.fast_bfloat16", lambda device: False)
    image = (1000 * grey(rng, 2, 1, 60, 75) + 7000).astype(np.uint16)
    expected = by_hand(run, image)
    probabilities = run.predict(image)
    assert probabilities.shape == (2, 2, 60, 75) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities[:, 1], expected, atol=2e-5)
    # a threshold that surely parts the pixels, whatever network was drawn
    level = float(np.quantile(expected, 0.7))
    run = uf.Run(run.folder, run.model, replace(run.settings, threshold=level))
    labels = run.predict(image, output="labels")
    assert labels.dtype == np.uint8
    clear = np.abs(expected - level) > 1e-4
    np.testing.assert_array_equal(labels[clear], (expected > level)[clear])
    assert 0 < labels.mean() < 1
    objects = run.predict(image[1], output="instances", min_size=1)
    assert objects.shape == (1, 60, 75)
    kept = objects[0] > 0
    assert kept.any() and not (kept & (labels[1] == 0)).any()


def test_options_override_the_run(folder, rng):
    run = uf.Run.load(folder, "cpu")
    image = grey(rng, 1, 1, 40, 40)
    mirrored = run.predict(image, padding="mirror", tta=1, threshold=None, amp=False)
    expected = OverlapTile(run.model)(uf.data.normalize(image))
    np.testing.assert_allclose(mirrored, expected, atol=2e-5)
    assert np.abs(run.predict(image, tta=1, amp=False) - mirrored).max() > 1e-3


def test_a_predictor_writes_what_it_returns(folder, rng, tmp_path):
    predictor = uf.Run.load(folder, "cpu").predictor(output="instances", tta=1)
    pages = grey(rng, 3, 1, 40, 52)
    predictor.write(pages, tmp_path / "objects.tif", progress=False)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "objects.tif"), predictor(pages))


def test_what_a_run_refuses(folder, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        uf.Run.load(tmp_path / "nowhere")
    run = uf.Run.load(folder, "cpu")
    with pytest.raises(InputError, match="output is 'mask'"):
        run.predictor(output="mask")
    with pytest.raises(InputError, match="image has shape"):
        run.predict(np.zeros((0, 1, 8, 8)))
    assert "unet" in repr(run) and json.loads((folder / "config.json").read_text())["tta"] == 7
