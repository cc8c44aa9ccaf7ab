"""Pictures of training and of results, as PNG files.

Drawn by matplotlib's object interface on an Agg canvas: no display, no global state. Each function takes plain arrays,
writes one file in one step (a reader never sees half of it) and returns its path. Colours come from the Okabe-Ito
palette and from perceptually uniform maps, so that colour-blind readers can tell them apart, too.
"""

from __future__ import annotations

from unet_fast.plots.curves import loss_curve
from unet_fast.plots.latency import latency_picture
from unet_fast.plots.objects import objects
from unet_fast.plots.preview import grid_image, preview
from unet_fast.plots.slices import overlay, worst_best

__all__ = ["grid_image", "latency_picture", "loss_curve", "objects", "overlay", "preview", "worst_best"]
