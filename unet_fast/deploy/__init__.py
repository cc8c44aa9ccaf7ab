"""Deployment: a trained network in other programs, in the fastest engine of the machine, with known latency."""

from __future__ import annotations

from unet_fast.deploy.choose import engine
from unet_fast.deploy.description import Description
from unet_fast.deploy.engines import Engine
from unet_fast.deploy.export import export
from unet_fast.deploy.latency import latency

__all__ = ["Description", "Engine", "engine", "export", "latency"]
