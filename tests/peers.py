"""Networks of other libraries for the tests, and of one that is known by its description alone.

A library that is not installed skips its tests, aloud.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tools.peers import Milesial, let_torchvision_load


def library(name: str):
    """The module ``name``, or a skip of the test."""
    if name == "segmentation_models_pytorch":
        let_torchvision_load()
    return pytest.importorskip(name, reason=f"{name} is not installed: python -m pip install --group test")


class Encoder3D(nn.Module):
    """pytorch-3dunet's, in 2-D: pool, then the block."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.pooling = nn.MaxPool2d(2) if pool else None
        self.basic_module = gcr_block(in_channels, out_channels, True)

    def forward(self, x):
        if self.pooling is not None:
            x = self.pooling(x)
        return self.basic_module(x)


def gcr_block(in_channels: int, out_channels: int, encoder: bool) -> nn.Sequential:
    """Group norm -> convolution -> ReLU, twice."""
    middle = max(out_channels // 2, in_channels) if encoder else out_channels
    block = nn.Sequential()
    for index, (a, b) in enumerate(((in_channels, middle), (middle, out_channels)), 1):
        single = nn.Sequential()
        single.add_module("groupnorm", nn.GroupNorm(8 if a % 8 == 0 else 1, a))
        single.add_module("conv", nn.Conv2d(a, b, 3, padding=1, bias=False))
        single.add_module("ReLU", nn.ReLU(inplace=True))
        block.add_module(f"SingleConv{index}", single)
    return block


class Decoder3D(nn.Module):
    """pytorch-3dunet's, in 2-D: up-sample to the size of the encoder's map, join behind it, then the block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.basic_module = gcr_block(in_channels, out_channels, False)

    def forward(self, encoder_features, x):
        x = F.interpolate(x, size=encoder_features.size()[2:], mode="nearest")
        return self.basic_module(torch.cat((encoder_features, x), dim=1))


class UNet3D(nn.Module):
    """The residual-free network of wolny/pytorch-3dunet in 2-D, from its description."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2, base: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [base << level for level in range(depth)]
        self.encoders = nn.ModuleList(
            Encoder3D(a, b, pool=bool(level))
            for level, (a, b) in enumerate(zip([in_channels, *widths], widths))  # noqa: B905
        )
        self.decoders = nn.ModuleList(
            Decoder3D(widths[level] + widths[level - 1], widths[level - 1]) for level in reversed(range(1, depth))
        )
        self.final_conv = nn.Conv2d(base, num_classes, 1)

    def forward(self, x):
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.insert(0, x)
        for decoder, skip in zip(self.decoders, skips[1:], strict=True):
            x = decoder(skip, x)
        return self.final_conv(x)


def _monai(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(library("monai.networks.nets"), name)(**options)


def _nnunet(name: str, **options) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        unets = library("dynamic_network_architectures.architectures.unet")
        return getattr(unets, name)(
            input_channels=1, n_stages=3, features_per_stage=(16, 32, 48), conv_op=nn.Conv2d, kernel_sizes=3,
            strides=(1, 2, 2), num_classes=2, n_conv_per_stage_decoder=2, conv_bias=True, norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, **options,
        )  # fmt: skip

    return make


def _smp(name: str, encoder: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(library("segmentation_models_pytorch"), name)(
        encoder,
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=(32, 16, 16),
        in_channels=1,
        classes=2,
        **options,
    )


# name -> how it is made; all take (N, 1, H, W) with sizes that are multiples of 32, and are small
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "milesial": Milesial,
    "milesial bilinear": lambda: Milesial(bilinear=True),
    "pytorch-3dunet": UNet3D,
    "MONAI BasicUNet": _monai("BasicUNet", spatial_dims=2, features=(16, 16, 32, 32, 48, 16)),
    "MONAI UNet": _monai(
        "UNet", spatial_dims=2, in_channels=1, out_channels=2, channels=(16, 32, 48), strides=(2, 2), num_res_units=2,
    ),
    "MONAI DynUNet": _monai(
        "DynUNet", spatial_dims=2, in_channels=1, out_channels=2, kernel_size=(3, 3, 3), strides=(1, 2, 2),
        upsample_kernel_size=(2, 2), filters=(16, 32, 48), deep_supervision=True, deep_supr_num=1,
    ),
    "MONAI DynUNet residual": _monai(
        "DynUNet", spatial_dims=2, in_channels=1, out_channels=2, kernel_size=(3, 3, 3), strides=(1, 2, 2),
        upsample_kernel_size=(2, 2), filters=(16, 32, 48), res_block=True,
    ),
    "MONAI FlexibleUNet": _monai(
        "FlexibleUNet", in_channels=1, out_channels=2, backbone="resnet10", decoder_channels=(64, 48, 32, 16, 16),
    ),
    "nnU-Net PlainConvUNet": _nnunet("PlainConvUNet", n_conv_per_stage=2, deep_supervision=True),
    "nnU-Net ResidualEncoderUNet": _nnunet("ResidualEncoderUNet", n_blocks_per_stage=1),
    "smp Unet": _smp("Unet", "resnet18"),
    "smp Unet timm": _smp("Unet", "tu-resnet18"),
    "smp UnetPlusPlus": _smp("UnetPlusPlus", "resnet18"),
}  # fmt: skip
