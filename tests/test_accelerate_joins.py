"""How accelerated networks join a skip with what was up-sampled: orders, crops, paddings, up-samplings, dtypes; norms under autocast."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unet_fast as uf
from unet_fast.accelerate import joined, layers

pytestmark = pytest.mark.core

UPSAMPLINGS = {
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=(2, 2), mode="bilinear"),
    "aligned": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "transposed": lambda: nn.ConvTranspose2d(16, 16, 2, 2),
    "behind a layer": lambda: nn.Sequential(nn.Conv2d(16, 16, 1), nn.Upsample(scale_factor=2)),
}


class HandsOn(nn.Module):
    """What a switched-off attention looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(x)


class Decoder(nn.Module):
    """Up-samples ``low``, lets it and ``skip`` fit each other, joins, convolves."""

    def __init__(self, up: str | None, fit: str, up_first: bool, width: int) -> None:
        super().__init__()
        self.up = None if up is None else UPSAMPLINGS[up]()
        self.fit, self.up_first = fit, up_first
        self.attention, self.conv = HandsOn(), nn.Conv2d(32, width, 3, padding=1)
        self.norm, self.act = nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(inplace=True)

    def forward(self, low, skip):
        if self.up is None:
            x = F.interpolate(low, size=skip.shape[2:], mode="nearest")
        else:
            x = self.up(low)
        rows, columns = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        if self.fit == "crop":
            top, left = rows // 2, columns // 2
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        elif self.fit:
            around = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            x = F.pad(x, around, mode=self.fit)
        x = torch.cat([x, skip] if self.up_first else [skip, x], dim=1)
        return self.act(self.norm(self.conv(self.attention(x))))


def _near(got: Tensor, truth: Tensor, relative: float = 1e-4) -> None:
    assert got.dtype == truth.dtype and got.shape == truth.shape
    assert (got - truth).abs().max() <= relative * truth.abs().max()


def _count(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[str]:
    calls, own = [], getattr(module, name)

    def counted(*args, **options):
        calls.append(name)
        return own(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


FITS = ("", "crop", "constant", "replicate")
CASES = [
    (up, fit, bool((index + turn) % 2), form)
    for turn, up in enumerate([*UPSAMPLINGS, None])
    for index, (fit, form) in enumerate(zip(FITS, (torch.channels_last, torch.contiguous_format) * 2, strict=True))
]


@pytest.mark.parametrize(("up", "fit", "up_first", "order"), CASES)
def test_joins(
    up: str | None,
    fit: str,
    up_first: bool,
    order: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    side = 0 if up is None or not fit else 3  # F.interpolate itself fits the skip
    # 16 channels: Winograd's form reads the maps where they lie; 8: torch's convolution wants the joined map, in one pass
    width = 16 if fit == "constant" else 8
    made = _count(monkeypatch, joined, "upsample_concat")
    net = Decoder(up, fit, up_first, width).eval()
    plain = copy.deepcopy(net)
    low = torch.randn(2, 16, 6, 5, generator=generator).contiguous(memory_format=order)
    skip = torch.randn(2, 16, 12 + side, 10 + side, generator=generator).contiguous(memory_format=order)
    report = uf.accelerate(net, (low, skip))
    assert "join of maps" in str(report) and not [one for one in report.left if "differs" in one.why], str(report)
    _near(net(low, skip), plain(low, skip))  # both in evaluation
    net = pickle.loads(pickle.dumps(net))

    made.clear()
    grads = []
    for one in (net, plain):
        leaves = [low.clone().requires_grad_(), skip.clone().requires_grad_(), *one.parameters()]
        out = one.train()(*leaves[:2])
        grads.append((out, torch.autograd.grad(out.square().sum(), leaves)))
    _near(grads[0][0], grads[1][0])
    scale = max(grad.abs().max() for grad in grads[1][1])
    for got, truth in zip(grads[0][1], grads[1][1], strict=True):
        assert (got - truth).abs().max() <= 1e-4 * scale
    assert width == 16 or bool(made) == (up != "transposed")

    report.undo()
    uf.accelerate(net, (low, skip)).undo()
    assert torch.equal(net(low, skip), plain(low, skip))
    assert not [module for module in net.modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("up", ["nearest", "bilinear", None])
def test_joins_under_autocast(up: str | None, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    made = _count(monkeypatch, joined, "upsample_concat")
    normalised = _count(monkeypatch, layers, "normalised")
    net = Decoder(up, "", True, 16)
    plain = copy.deepcopy(net)
    low, skip = torch.randn(2, 16, 6, 5, generator=generator), torch.randn(2, 16, 12, 10, generator=generator)
    uf.accelerate(net, (low, skip))
    made.clear(), normalised.clear()
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            for one in (net, plain):
                out = one(low.to(dtype).requires_grad_(), skip.to(dtype))
                grads.append((out, *torch.autograd.grad(out.float().square().sum(), list(one.parameters()))))
        scale = max(grad.norm() for grad in grads[-1][1:])  # that of the bias in front of the norm is noise around 0
        _near(grads[-2][0], grads[-1][0], 0.05)
        for got, truth in zip(grads[-2][1:], grads[-1][1:], strict=True):
            assert (got - truth).norm() <= 0.05 * scale
    assert len(made) == 2 and len(normalised) == 2


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.PReLU])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda channels: nn.GroupNorm(4, channels)])
def test_norms_keep_the_dtypes_of_autocast(norm, act, generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), norm(8), act())
    plain = copy.deepcopy(net)
    image = torch.randn(2, 1, 9, 10, generator=generator)
    assert uf.accelerate(net, image).replaced
    for start in (0, 1):  # behind the convolution, which lowers, and on an image as it is
        for dtype in (torch.float32, torch.bfloat16):
            x = image.to(dtype) if start == 0 else image.expand(2, 8, 9, 10).to(dtype)
            with torch.autocast("cpu", torch.bfloat16):
                got, truth = layers.run(list(net)[start:], x), plain[start:](x)
            _near(got, truth, 0.05)


def test_other_sizes_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """The steps are read off for any size; up-sampling by another factor than 2, or of another kind, is torch's."""
    made = _count(monkeypatch, joined, "upsample_concat")
    net = Decoder(None, "", False, 8).eval()
    plain = copy.deepcopy(net)
    low = torch.randn(1, 16, 6, 5, generator=generator)
    uf.accelerate(net, (low, torch.randn(1, 16, 12, 10, generator=generator)))
    made.clear()
    for size in ((6, 5), (13, 11), (24, 20)):
        skip = torch.randn(1, 16, *size, generator=generator)
        _near(net(low, skip), plain(low, skip))
    assert not made
    layer = nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Upsample(size=7))
    assert [one.path for one in uf.accelerate(layer, torch.randn(1, 2, 5, 5)).replaced] == ["0"]
