"""What a user of the package sees: its names, their types in an editor, and how its objects show themselves."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unet_fast as uf

ROOT = Path(__file__).parent.parent

CLIENT = """\
import torch
import unet_fast as uf

net = uf.UNet(in_channels=1, num_classes=2, base_channels=8, depth=2)
logits = net(torch.rand(1, 1, 68, 68))
labels = uf.predict.OverlapTile(net, tile=64, output="labels")(torch.rand(1, 100, 120))
distances = uf.ops.distance_transform(torch.rand(1, 8, 8) > 0.5)
reveal_type([net.output_size(68), net.margin]), reveal_type((logits, labels, distances)), reveal_type(net.head)
try: uf.models.create("unet", depth=0)
except uf.InputTypeError as error: print(error)
except uf.InputError as error: print(error)
"""
MISTAKES = """\
import unet_fast as uf
uf.UNet(channels=3)
uf.Unet()
uf.UNet().margin.sides
uf.UNet().output_size("572") + 1
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ``mypy --strict`` says of both, in one run: reading torch takes longer than all else."""
    folder = tmp_path_factory.mktemp("client")
    for name, text in (("client", CLIENT), ("mistakes", MISTAKES)):
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *sorted(folder.iterdir())]
    # a cache of its own, since the options differ from those of `make lint`; kept, for the same reason
    cache = ["--cache-dir", ROOT / ".mypy_cache" / "client"]
    return subprocess.run([*command, *cache], cwd=ROOT, capture_output=True, text=True, timeout=600).stdout


def test_a_client_is_checked_strictly(found):
    revealed = re.findall(r'client\.py:\d+: note: Revealed type is "(.*)"', found)
    tensor = "torch._tensor.Tensor"
    assert revealed == [
        "list[int]",
        f"tuple[{tensor}, {tensor}, {tensor}]",
        "torch.nn.modules.conv.Conv2d",
    ], found
    assert "client.py" in found and not re.search(r"client\.py:\d+: error", found), found
    exec(compile(CLIENT.replace("reveal_type", ""), "client.py", "exec"), {})


def test_the_mistakes_of_a_client_are_seen(found):
    assert {int(line) for line in re.findall(r"mistakes\.py:(\d+): error", found)} == {2, 3, 4, 5}, found


def test_every_public_name_can_be_loaded():
    assert {"UNet", "InputError", "InputTypeError", "BackendError", "ops", "nn", "numpy"} <= set(uf.__all__)
    for name in uf.__all__:
        assert getattr(uf, name) is not None
        if name == "accelerate":  # a function, whose package is called as well, in case somebody imports that first
            assert callable(uf.accelerate) and callable(importlib.import_module("unet_fast.accelerate"))
        elif name.islower():
            assert getattr(uf, name) is importlib.import_module(f"unet_fast.{name}")


def test_objects_show_how_they_are_set():
    augment = uf.augment.Augmenter(64, 60, rotation=30)
    shown = repr(augment)
    assert shown.startswith("Augmenter(input_size=(64, 64), output_size=(60, 60), ") and "rotation=30" in shown
    again = eval(shown, {"Augmenter": uf.augment.Augmenter})
    assert vars(again) == vars(augment)

    net = uf.UNet(base_channels=2, depth=1)
    tiles = uf.predict.OverlapTile(net, tile=20, tta=8)
    assert repr(tiles).startswith("OverlapTile(model=UNet, tile=20, padding='mirror', ") and "tta=8" in repr(tiles)
    assert tiles.device == torch.device("cpu") and "device=device(type='cpu')" in repr(tiles)


def test_the_module_is_the_command_line():
    shown = subprocess.run([sys.executable, "-m", "unet_fast", "--help"], capture_output=True, text=True, check=True)
    assert "predict" in shown.stdout and "python -m unet_fast" in shown.stdout
