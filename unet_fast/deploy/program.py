"""A network as torch's own operators with free batch and sizes: what every exported format starts from."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unet_fast import ops
from unet_fast.errors import InputTypeError
from unet_fast.models import SegmentationModel
from unet_fast.models.geometry import Geometry

LEAST_SIDE = 48  # of those: below, a network with same padding consists of borders


def plain_copy(model: object) -> SegmentationModel:
    """The network in eval mode as float32 on the CPU, contiguous, without fused operators; ``model`` stays as it is.

    Raises ``InputTypeError`` for anything but a network of :mod:`unet_fast.models`.
    """
    if not isinstance(model, SegmentationModel):
        raise InputTypeError(f"model is a {type(model).__name__}, expected a network of unet_fast.models, or a run")
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs
    plain.fused = False
    return plain


def exported_program(model: SegmentationModel) -> torch.export.ExportedProgram:
    """``model`` (see :func:`plain_copy`) through ``torch.export``: images (N, C, H, W) -> logits, N, H and W free.

    The layers of this package take their reference path, which consists of torch's operators.
    """
    geometry = exported_geometry(model)
    first = first_size(geometry, geometry.smallest_input)
    x = torch.zeros(2, model.in_channels, first + geometry.step, first + 2 * geometry.step)
    names = ("down", "across")
    height: Any
    width: Any
    if geometry.any_from is not None:  # torch takes a map of one pixel, which one step leaves, for a case of its own
        height, width = (torch.export.Dim(name, min=2 * geometry.any_from) for name in names)
    else:
        # sizes as steps: every size on the way is then a line, which torch computes with far faster than with remainders;
        # torch takes a count of steps to be 2 or more
        height, width = (geometry.step * torch.export.Dim(name, min=2) + first - 2 * geometry.step for name in names)
    with ops.use_backend("reference"), torch.no_grad(), quick_shapes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own use of deprecated names
        return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 2: height, 3: width},))


@contextlib.contextmanager
def quick_shapes() -> Iterator[None]:
    """Without torch's memory of the shapes that operators give: to compare formulas of sizes takes longer than to derive them."""
    from torch._dynamo import config

    with config.patch(fake_tensor_cache_enabled=False):
        yield


def exported_geometry(model: SegmentationModel) -> Geometry:
    """The sizes of a network whose graph holds all of its levels: where any size is legal, from a first whole step on."""
    geometry = model.geometry
    if geometry.any_from is None:
        return geometry
    return dataclasses.replace(
        geometry, any_from=max(geometry.any_from, geometry.smallest_output + 2 * geometry.margin)
    )


def first_size(geometry: Geometry, least: int) -> int:
    """The first input of at least ``least`` pixels among those that are whole steps."""
    smallest = geometry.smallest_output + 2 * geometry.margin
    return smallest + max(0, -(-(least - smallest) // geometry.step)) * geometry.step


def sample_sizes(geometry: Geometry) -> tuple[int, int, int]:
    """Three legal inputs at which an exported network is compared with torch, the smallest sensible ones, no two alike.

    The first two are whole steps; the third is none where the network takes such sizes.
    """
    first = first_size(geometry, max(geometry.smallest_input, LEAST_SIDE))
    third = first + 2 * geometry.step
    return first, first + geometry.step, third if geometry.any_from is None else third - 1


def samples(model: Any) -> list[Tensor]:
    """Images of three sizes and two batches, of normalised grey values, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = sample_sizes(model.geometry)
    shapes = [(1, sizes[0], sizes[0]), (2, sizes[1], sizes[0]), (1, sizes[2], sizes[1])]
    return [torch.randn(n, model.in_channels, height, width, generator=generator) for n, height, width in shapes]


def difference(model: nn.Module, other: Any) -> float:
    """The largest |a - b| / max(1, |a|max) between the logits of two networks on :func:`samples`."""
    worst = 0.0
    with torch.no_grad():
        for x in samples(model):
            a, b = model(x), other(x)
            worst = max(worst, float((a - b).abs().max()) / max(1.0, float(a.abs().max())))
    return worst
