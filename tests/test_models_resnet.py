"""U-Nets with ResNet encoders: torchvision's names, its files, and what is said when a file does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import unet_fast as uf
from tests.networks import lively, small_networks  # noqa: F401
from tests.tolerances import EXACT, NETWORK_FLOAT32
from unet_fast.errors import InputError, InputTypeError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in torchvision's state_dict of ResNet-18, -34 or -50, ``fc`` included."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        shapes[f"{convolution}.weight"] = shape
        for name in BATCH_NORM:
            shapes[f"{norm}.{name}"] = () if name == "num_batches_tracked" else shape[:1]

    add("conv1", "bn1", 64, 3, 7, 7)
    width = 64
    for stage, count in enumerate(BLOCKS[layers]):
        inner = 64 * 2**stage
        outer = inner * (4 if layers == 50 else 1)
        for block in range(count):
            prefix = f"layer{stage + 1}.{block}."
            if layers == 50:
                taps = [(inner, width, 1, 1), (inner, inner, 3, 3), (outer, inner, 1, 1)]
            else:
                taps = [(inner, width, 3, 3), (inner, inner, 3, 3)]
            for index, shape in enumerate(taps, start=1):
                add(f"{prefix}conv{index}", f"{prefix}bn{index}", *shape)
            if block == 0 and width != outer:
                add(f"{prefix}downsample.0", f"{prefix}downsample.1", outer, width, 1, 1)
            width = outer
    shapes["fc.weight"], shapes["fc.bias"] = (1000, width), (1000,)
    return shapes


def torchvision_weights(layers: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A state_dict as torchvision saves it, with random numbers of a sensible size."""
    state = {}
    for name, shape in torchvision_shapes(layers).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) == 4:
            state[name] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            state[name] = torch.rand(shape, generator=generator) * 0.5 + 0.5
    return state


@pytest.mark.parametrize(("layers", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)])
def test_the_encoder_has_torchvisions_names_and_shapes(layers: int, count: int) -> None:
    with torch.device("meta"):
        encoder = uf.models.create(f"unet-resnet{layers}", in_channels=3).encoder
    expected = {key: shape for key, shape in torchvision_shapes(layers).items() if not key.startswith("fc.")}
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == expected
    # torchvision's own counts, 11,689,512, 21,797,672 and 25,557,032, less those of fc
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count


def plain_resnet(state: dict[str, Tensor], x: Tensor, layers: int) -> list[Tensor]:
    """The five maps of a ResNet in eval mode, from a state_dict."""

    def unit(y: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{convolution}.weight"]
        y = F.conv2d(y, weight, stride=stride, padding=weight.shape[2] // 2)
        return F.batch_norm(y, *(state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))

    x = F.relu(unit(x, "conv1", "bn1", 2))
    maps, x = [x], F.max_pool2d(x, 3, 2, 1)
    strided, last = (2, 3) if layers == 50 else (1, 2)
    for stage, count in enumerate(BLOCKS[layers]):
        for block in range(count):
            prefix = f"layer{stage + 1}.{block}."
            stride = 2 if stage and not block else 1
            y = x
            for index in range(1, last + 1):
                y = unit(y, f"{prefix}conv{index}", f"{prefix}bn{index}", stride if index == strided else 1)
                y = F.relu(y) if index < last else y
            if f"{prefix}downsample.0.weight" in state:
                x = unit(x, f"{prefix}downsample.0", f"{prefix}downsample.1", stride)
            x = F.relu(x + y)
        maps.append(x)
    return maps


@pytest.mark.parametrize("layers", [18, 34, 50])
def test_encoder_and_decoder_equal_plain_pytorch(rng: np.random.Generator, layers: int) -> None:
    net = lively(uf.models.create(f"unet-resnet{layers}", 2, 3, base_channels=8), rng).eval()
    x = torch.from_numpy(rng.standard_normal((2, 2, 32, 64), dtype=np.float32))
    maps = plain_resnet(net.encoder.state_dict(), x, layers)
    with torch.no_grad():
        for ours, theirs in zip(net.encoder(x), maps, strict=True):
            torch.testing.assert_close(ours, theirs, **NETWORK_FLOAT32)
        skips, y = [x, *maps[:-1]], maps[-1]
        for up in net.up:
            y = up.block(torch.cat([skips.pop(), up.up(y)], 1))
        torch.testing.assert_close(net(x), net.head(y), **NETWORK_FLOAT32)
    assert [block.block[0].out_channels for block in net.up] == [32, 16, 8, 4, 2]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_load_from_a_local_file(
    rng: np.random.Generator, generator: torch.Generator, tmp_path: Path, suffix: str
) -> None:
    state, file = torchvision_weights(18, generator), tmp_path / f"resnet18{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        # files of old lack the counters of batches
        torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, file)
    net = uf.models.create("unet-resnet18", in_channels=3, weights=file)
    for name, value in net.encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, state[name], **EXACT)
    assert "weights" not in net.config
    uf.models.create(**net.config)  # needs no file
    x = torch.from_numpy(rng.standard_normal((1, 1, 32, 32), dtype=np.float32))
    with torch.no_grad():
        expected = plain_resnet(state, x.expand(-1, 3, -1, -1), 18)[-1]
        scale = expected.abs().max()
        for channels in (1, 2, 4) if suffix == ".safetensors" else (1,):
            net = uf.models.create("unet-resnet18", in_channels=channels, weights=str(file)).eval()
            actual = net.encoder(x.expand(-1, channels, -1, -1))[-1]
            torch.testing.assert_close(actual / scale, expected / scale, **NETWORK_FLOAT32)


def test_weights_that_do_not_fit_are_refused(generator: torch.Generator, tmp_path: Path) -> None:
    address = re.escape("fetch https://download.pytorch.org/models/resnet18-f37072fd.pth once")
    create, state = uf.models.UNetResNet18, torchvision_weights(18, generator)

    def saved(name: str, value: object) -> Path:
        torch.save(value, tmp_path / name)
        return tmp_path / name

    with pytest.raises(InputError, match=f"none.pth does not exist; nothing is downloaded here: {address}"):
        create(weights=tmp_path / "none.pth")
    with pytest.raises(InputTypeError, match=f"weights is True, expected the path of a local file; .*{address}"):
        create(weights=True)  # type: ignore[arg-type]
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(InputError, match="ends in '.bin', expected .safetensors, .pth or .pt"):
        create(weights=tmp_path / "weights.bin")
    whole = saved("whole.pth", state).read_bytes()
    for name, content in (
        ("cut.pth", whole[: len(whole) // 2]),
        ("text.pth", b"hello"),
        ("text.safetensors", b"hello"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read as weights"):
            create(weights=tmp_path / name)
    # a pickled object is not run: torch's restricted reader refuses it
    with pytest.raises(
        InputError, match="object.pth cannot be read as weights: .* holds more than tensors, which is refused"
    ):
        create(weights=saved("object.pth", Path(".")))
    with pytest.raises(InputError, match="list.pth holds no plain state_dict"):
        create(weights=saved("list.pth", [torch.zeros(1)]))
    with pytest.raises(InputError, match=r"more.pth has unknown 'layer1.2.bn1.bias' \(and 0 more names\)"):
        create(weights=saved("more.pth", {**state, "layer1.2.bn1.bias": torch.zeros(64)}))
    short = {name: value for name, value in state.items() if not name.startswith("layer4.1.conv2")}
    with pytest.raises(
        InputError, match=f"short.pth lacks 'layer4.1.conv2.weight' .* does not belong to this encoder; .*{address}"
    ):
        create(weights=saved("short.pth", short))
    with pytest.raises(InputError, match=r"'conv1.weight' of shape \(64, 1, 7, 7\), this encoder needs \(8, 1, 7, 7\)"):
        create(base_channels=8, weights=tmp_path / "whole.pth")
