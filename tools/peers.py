"""What tests and benchmarks share of other people's software, of which neither may import the other.

A network that is known by its description alone, and a torchvision that loads.
"""

from __future__ import annotations

import importlib
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

_stubs: list[torch.library.Library] = []


@cache
def let_torchvision_load() -> None:
    """Wheels of torchvision for CUDA find no libraries beside a torch for CPUs, and then miss two names at their import.

    Its networks are plain layers; none of the operators behind these names is ever called.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        stub = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            stub.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _stubs.append(stub)


class DoubleConv(nn.Module):
    """milesial's: (convolution => batch norm => ReLU) twice."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers = []
        for width in (in_channels, out_channels):
            layers += [
                nn.Conv2d(width, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    """milesial's: up-sample, pad to the size of the skip, join behind it, convolve twice."""

    def __init__(self, in_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, 2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, below, skip):
        x = self.up(below)
        rows, columns = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class Milesial(nn.Module):
    """The U-Net of milesial/Pytorch-UNet, from its description."""

    def __init__(
        self, in_channels: int = 1, num_classes: int = 2, base: int = 16, depth: int = 3, bilinear=False
    ) -> None:
        super().__init__()
        self.inc = DoubleConv(in_channels, base)
        widths = [base << level for level in range(depth + 1)]
        if bilinear:
            widths[-1] //= 2
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b)) for a, b in zip(widths, widths[1:], strict=False)
        )
        ups = []
        for level in reversed(range(depth)):
            out = widths[level] // (2 if bilinear and level else 1)
            ups.append(Up(2 * widths[level], out, bilinear))
        self.up = nn.ModuleList(ups)
        self.outc = nn.Conv2d(base, num_classes, 1)

    def forward(self, x):
        skips = [self.inc(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.outc(x)
