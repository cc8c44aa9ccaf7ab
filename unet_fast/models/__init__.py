"""The U-Net family: ``create(name, ...)`` builds a network, ``list()`` names them, ``UNet`` is the one of 2015."""

from __future__ import annotations

from unet_fast.models.base import SegmentationModel
from unet_fast.models.geometry import Geometry
from unet_fast.models.registry import create, register
from unet_fast.models.registry import list_models as list
from unet_fast.models.unet import UNet

__all__ = ["Geometry", "SegmentationModel", "UNet", "create", "list", "register"]
