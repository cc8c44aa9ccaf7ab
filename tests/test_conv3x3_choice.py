"""Which convolutions are Winograd's: what the measured table, a wish and the dtype say, and what networks then leave to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import unet_fast as uf
from tests.convolutions import cpu_level, draw, rms, scale, winograd  # noqa: F401
from tests.places import needs
from tests.tolerances import WINOGRAD_ERROR
from unet_fast.errors import InputError
from unet_fast.ops import _backends, _convolution, conv3x3, use_convolution

pytestmark = [pytest.mark.kernels, needs("cpp")]


class Calls(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.first_layers = 0  # that the second ones compute as well
        self.joined = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        self.first_layers += function.name() == "unet_fast::conv3x3_pool" and len(args) > 7
        self.joined += function.name().endswith(("cat", "concat"))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def table(monkeypatch):
    """Another table, by instruction set and kind of call, in which nothing is faster that the test does not change."""
    kinds = [f"{kind}, {layout}" for kind in ("forward", "training") for layout in ("channels-last", "contiguous")]
    levels = {name: {kind: [[0, 0], [0, 0]] for kind in kinds} for name in _convolution.LEVELS}
    monkeypatch.setattr(_backends, "CONVOLUTION", {"inputs": [3, 8], "outputs": [4, 16], "levels": levels})
    _convolution.least_tiles.cache_clear()
    yield levels
    _convolution.least_tiles.cache_clear()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["unet", "unet++", "unet3+", "unet-bn"])
def test_networks_write_no_joined_map(name, train, table, generator):
    """Nor do they leave a convolution to torch that the table gives to us; their results are those of torch's layers."""
    _backends.CONVOLUTION["inputs"] = [1, 8]
    table[_convolution.level()][f"{'training' if train else 'forward'}, channels-last"] = [[0, 1], [0, 1]]
    torch.manual_seed(0)
    net = uf.models.create(name, base_channels=16, depth=2).to(memory_format=torch.channels_last).train(train)
    x = draw(generator, 1, 1, 76, 76)
    with use_convolution("auto"), torch.set_grad_enabled(train):
        with Calls() as calls:
            out = net(x)
        net.fused = False
        expected = net(x)
    assert not calls.joined
    convolutions = [layer for layer in net.modules() if type(layer) is torch.nn.Conv2d and layer.kernel_size == (3, 3)]
    wide = sum(layer.out_channels >= 16 for layer in convolutions)
    run = sum(call in ("unet_fast::conv3x3", "unet_fast::conv3x3_pool") for call in calls.names)
    assert run + calls.first_layers == wide
    assert calls.first_layers == (not train)
    out, expected = (y if isinstance(y, torch.Tensor) else y.logits for y in (out, expected))
    assert rms(out - expected) < 10 * WINOGRAD_ERROR * scale(expected)  # of some ten layers, each with its error


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("last", [True, False])
def test_auto_does_what_the_table_says(table, level, last, train, generator):
    name, kind = (
        _convolution.level(),
        f"{'training' if train else 'forward'}, {'channels-last' if last else 'contiguous'}",
    )
    x, weight = draw(generator, 2, 9, 13, 9, last=last), draw(generator, 20, 9, 3, 3, last=last).requires_grad_(train)
    few, one = draw(generator, 15, 9, 3, 3, last=last), draw(generator, 20, 1, 3, 3, last=last)
    with use_convolution("auto"):
        for least in (1, 12, 13):  # of 2 x 3 x 2 tiles without padding, 2 x 4 x 3 with
            table[name][kind] = [[0, 0], [0, least]]
            _convolution.least_tiles.cache_clear()
            assert _convolution.by_winograd([x], weight, 0) == (least <= 12)
            assert _convolution.by_winograd([x], weight, 1)
            assert not _convolution.by_winograd([x], few, 1)  # another column
            assert not _convolution.by_winograd([x[:, :7]], weight[:, :7], 1)  # another row
            assert not _convolution.by_winograd([x[:, :1]], one, 1)  # in front of the first row
        # other columns of the same table: the other layout and kind
        assert not _convolution.by_winograd([draw(generator, 2, 9, 13, 9, last=not last)], weight, 1)
        assert not _convolution.by_winograd([x], weight.detach().requires_grad_(not train), 1)
    table[name][kind] = [[0, 0], [0, 0]]
    _convolution.least_tiles.cache_clear()
    with use_convolution("auto"):
        assert not _convolution.by_winograd([x], weight, 1)
    assert _convolution.by_winograd([x], weight, 1)  # as was asked for


def test_one_channel_has_the_layout_of_its_weights(table, generator):
    table[_convolution.level()]["forward, channels-last"] = [[1, 1], [1, 1]]
    image = draw(generator, 1, 1, 9, 9, last=False)
    _backends.CONVOLUTION["inputs"] = [1, 8]
    with use_convolution("auto"):
        assert _convolution.by_winograd([image], draw(generator, 8, 1, 3, 3).to(memory_format=torch.channels_last), 0)
        assert not _convolution.by_winograd([image], draw(generator, 8, 1, 3, 3, last=False), 0)


def test_the_table_of_the_package_holds_every_case():
    found = _backends.CONVOLUTION
    assert set(found["levels"]) == set(_convolution.LEVELS)
    for kinds in found["levels"].values():
        assert len(kinds) == 4
        for rows in kinds.values():
            assert len(rows) == len(found["inputs"]) and {len(row) for row in rows} == {len(found["outputs"])}
    # a layer of many channels and pixels, for which all of this was made
    assert 0 < _convolution.least_tiles("AVX-512", "forward", "channels-last", 256, 256) <= 16


def test_wishes_and_dtypes(generator, monkeypatch):
    x, weight = draw(generator, 1, 16, 130, 130), draw(generator, 64, 16, 3, 3)
    for wish in ("auto", "winograd"):
        with use_convolution(wish):
            assert _convolution.by_winograd([x], weight, 0)
            assert not _convolution.by_winograd([x.double()], weight.double(), 0)
            assert not _convolution.by_winograd([x.bfloat16()], weight.bfloat16(), 0)
    with use_convolution("direct"):
        assert torch.equal(conv3x3(x, weight), F.conv2d(x, weight))
    with pytest.raises(InputError, match=r"convolution is 'fft', expected one of auto"), use_convolution("fft"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(_convolution, "_wish", "fft")  # as the environment may have it
        with pytest.raises(InputError, match=r"UNET_FAST_CONVOLUTION is 'fft', expected one of auto"):
            _convolution.by_winograd([x], weight, 0)
