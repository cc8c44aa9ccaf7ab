"""The U-Net family: ``create(name, ...)`` builds a network, ``list()`` names them, ``UNet`` is the one of 2015."""

from __future__ import annotations

from unet_fast.models.adaptive import UNetBN
from unet_fast.models.base import SegmentationModel
from unet_fast.models.dental import UNetDental
from unet_fast.models.em import UNetEM
from unet_fast.models.full_scale import UNet3Plus
from unet_fast.models.geometry import Geometry
from unet_fast.models.heads import HeadOutputs
from unet_fast.models.plusplus import UNetPlusPlus
from unet_fast.models.registry import create, defaults, register
from unet_fast.models.registry import list_models as list
from unet_fast.models.release import UNet2015Release
from unet_fast.models.resnet_unet import UNetResNet, UNetResNet18, UNetResNet34, UNetResNet50
from unet_fast.models.unet import UNet

__all__ = [
    "Geometry",
    "HeadOutputs",
    "SegmentationModel",
    "UNet",
    "UNet2015Release",
    "UNet3Plus",
    "UNetBN",
    "UNetDental",
    "UNetEM",
    "UNetPlusPlus",
    "UNetResNet",
    "UNetResNet18",
    "UNetResNet34",
    "UNetResNet50",
    "create",
    "defaults",
    "list",
    "register",
]
