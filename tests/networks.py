"""Small networks for the tests of models and prediction, and the truth that tiled prediction must equal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import pytest
import torch

import unet_fast as uf

Network = TypeVar("Network", bound=uf.models.SegmentationModel)


@pytest.fixture(autouse=True)
def small_networks(generator: torch.Generator) -> Iterator[None]:
    """Weights from the test's own seed; one thread, since these layers are too small to share."""
    torch.manual_seed(generator.initial_seed())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short_resnets(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNets with one block a stage, and two in the first: what is traced has every kind of block, but not 33 or 50 layers."""
    for name in uf.models.list():
        if "resnet" in name:
            monkeypatch.setattr(uf.models.registry._MODELS[name], "blocks", (2, 1, 1, 1))


def grey(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def lively(net: Network, rng: np.random.Generator) -> Network:
    """Biases and running statistics away from 0 and 1, so that border effects and eval mode show."""
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("bias") or name.endswith("running_mean"):
                tensor.copy_(torch.from_numpy(rng.normal(0.0, 0.3, tensor.shape)))
            elif name.endswith("running_var"):
                tensor.copy_(torch.from_numpy(rng.uniform(0.5, 2.0, tensor.shape)))
    return net


def extended(net: uf.models.SegmentationModel, image: np.ndarray, mode: str = "reflect") -> tuple[np.ndarray, int]:
    """The whole image (N, C, H, W) with the context that the class documents, by np.pad; and what the output keeps."""
    geometry = net.geometry
    # where zero padding reaches into the output, one step more than tiles take: a step too few would show
    kept = geometry.spoilt + geometry.step if geometry.zero_padded else 0
    before = geometry.margin + kept
    widths = [(before, before + geometry.covering_output(size) - size) for size in image.shape[2:]]
    return np.pad(image, ((0, 0), (0, 0), *widths), mode=mode), kept  # type: ignore[call-overload]


def whole_image(net: uf.models.SegmentationModel, image: np.ndarray, mode: str = "reflect") -> np.ndarray:
    """Softmax (sigmoid) of the network applied once, in eval mode, cropped to the image."""
    padded, kept = extended(net, image, mode)
    height, width = image.shape[2:]
    modes = [module.training for module in net.modules()]
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(padded))[:, :, kept : kept + height, kept : kept + width]
    for module, training in zip(net.modules(), modes, strict=True):
        module.training = training
    return (logits.sigmoid() if net.num_classes == 1 else logits.softmax(1)).numpy()
