"""Every op's cases and check, and the run of so many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz import crop_concat, distances, elastic_warp, junctions, losses
from unet_fast.ops import _backends


@dataclass(frozen=True)
class Op:
    """``check(case, device)`` raises where the op is wrong for this case."""

    cases: SearchStrategy[Any]
    check: Callable[[Any, str], None]


OPS = {
    "crop_concat": Op(crop_concat.cases(), crop_concat.check),
    "elastic_warp": Op(elastic_warp.cases(), elastic_warp.check),
    "nearest_two": Op(distances.nearest_two_cases(), distances.check_nearest_two),
    "distance_transform": Op(distances.distance_transform_cases(), distances.check_distance_transform),
    "weight_map": Op(distances.weight_map_cases(), distances.check_weight_map),
    "weighted_cross_entropy": Op(losses.weighted_cross_entropy_cases(), losses.check_weighted_cross_entropy),
    "head_cross_entropy": Op(losses.head_cross_entropy_cases(), losses.check_head_cross_entropy),
    "relu_pool_skip": Op(junctions.relu_pool_skip_cases(), junctions.check_relu_pool_skip),
    "bias_relu": Op(junctions.bias_relu_cases(), junctions.check_bias_relu),
    "conv_bias_relu": Op(junctions.conv_bias_relu_cases(), junctions.check_conv_bias_relu),
    "up_conv_into": Op(junctions.up_conv_cases(), junctions.check_up_conv_into),
    "up_conv_crop_concat": Op(junctions.up_conv_cases(), junctions.check_up_conv_crop_concat),
}


def why_not(name: str, device: str) -> str | None:
    """None, or why the backend that UNET_FAST_BACKEND (or ``use_backend``) asks for cannot run the op there."""
    wish = _backends.wish()
    return None if wish == "auto" else _backends.why_not(wish, name, torch.device(device).type)


def fuzz(
    name: str, cases: int, *, start: int = 0, device: str = "cpu", watch: Callable[[Any], None] = lambda case: None
) -> None:
    """Check so many cases of the op ``name``; raises at the first wrong one, after hypothesis has shrunk it.

    ``start`` is the seed of the draws; ``watch`` is told every case before it runs.
    """
    op = OPS[name]

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=op.cases)
    def run(case: Any) -> None:
        watch(case)
        op.check(case, device)

    run()
