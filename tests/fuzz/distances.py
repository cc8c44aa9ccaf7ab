"""Fuzzed cases of nearest_two, distance_transform and weight_map, against SciPy's transform and the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import unet_fast.numpy
from tests.fuzz import drawing
from tests.instance_maps import mask_distances, random_instances, two_distances, weights_of
from tests.tolerances import DISTANCE, WEIGHT_MAP
from unet_fast import reference
from unet_fast.errors import InputError
from unet_fast.ops import distance_transform, nearest_two, weight_map

LABEL_DTYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)
MASK_DTYPES = (*LABEL_DTYPES, torch.bool, torch.uint64, *drawing.FLOATS)
LAYOUTS = ("dense", "slice", "transposed", "steps", "offset", "expanded")
LARGEST_LABEL = 2**31 - 1
MOST_TRUTH = 4000  # pixels times instances that the reference, which loops over pixels, is asked for

flat_shapes = st.tuples(st.integers(1, 3), drawing.sides(12), drawing.sides(20))
deep_shapes = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 9), st.integers(1, 12))
steps = st.sampled_from((1e-3, 0.25, 0.37, 1.0, 2.0, 3.7, 11.0))
densities = st.sampled_from((0.0, 0.01, 0.05, 0.2, 0.6, 1.0))


@dataclass(frozen=True)
class Labels:
    """An instance map."""

    shape: tuple[int, ...]
    count: int
    density: float
    thick: bool
    ids: str
    dtype: torch.dtype
    layout: str
    seed: int


@st.composite
def label_maps(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]]) -> Labels:
    dtype = draw(st.sampled_from(LABEL_DTYPES))
    bad = () if dtype in (torch.uint8, torch.uint16) else ("negative",)
    huge = ("huge", "too large") if dtype == torch.int64 else ("huge",) if dtype == torch.int32 else ()
    return Labels(
        shape=draw(drawing.sometimes_empty(shapes)),
        count=draw(st.integers(1, 12)),
        density=draw(densities),
        thick=draw(st.booleans()),
        ids=draw(st.sampled_from(("small",) * 4 + ("every pixel",) + huge + bad)),
        dtype=dtype,
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(drawing.seeds),
    )


def label_map(case: Labels, device: str) -> torch.Tensor:
    rng = np.random.default_rng(case.seed)
    labels = random_instances(rng, case.shape, case.count, case.density).astype(np.int64)
    if case.thick:
        labels = labels.repeat(2, axis=1).repeat(3, axis=-1)
    if case.ids == "every pixel" and labels.size <= 100:
        labels = labels.astype(bool) * np.arange(1, labels.size + 1).reshape(labels.shape)
    elif case.ids == "huge":
        labels = np.where(labels, LARGEST_LABEL + 1 - labels, 0)
    elif case.ids in ("negative", "too large") and labels.size:
        wrong = -1 - int(rng.integers(100)) if case.ids == "negative" else LARGEST_LABEL + 1 + int(rng.integers(2**40))
        labels.flat[rng.integers(labels.size)] = wrong
    return drawing.lay_out(torch.from_numpy(labels).to(case.dtype).to(device), case.layout)


def out_of_range(labels: torch.Tensor) -> bool:
    values = labels.to(torch.int64)
    return bool(((values < 0) | (values > LARGEST_LABEL)).any())


def raises(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """The op must refuse the labels, and say which."""
    try:
        call(*arguments, **options)
    except InputError as error:
        assert "instances contains" in str(error), error
    else:
        raise AssertionError(f"{call.__module__}.{call.__name__} took a label out of range")


@st.composite
def spacings(draw: st.DrawFn, dims: int) -> tuple[float, ...] | None:
    kind = draw(st.sampled_from(("none", "even", "uneven")))
    if kind == "none":
        return None
    return (draw(steps),) * dims if kind == "even" else tuple(draw(steps) for _ in range(dims))


@dataclass(frozen=True)
class NearestTwo:
    labels: Labels
    spacing: tuple[float, ...] | None
    threads: int


@st.composite
def nearest_two_cases(draw: st.DrawFn) -> NearestTwo:
    labels = draw(label_maps(draw(st.sampled_from((flat_shapes, flat_shapes, deep_shapes)))))
    return NearestTwo(labels, draw(spacings(len(labels.shape) - 1)), draw(drawing.thread_counts))


def check_nearest_two(case: NearestTwo, device: str) -> None:
    labels = label_map(case.labels, device)
    if out_of_range(labels):
        if drawing.looks_at_values(device):
            raises(nearest_two, labels, spacing=case.spacing)
            raises(unet_fast.numpy.nearest_two, labels.numpy(), spacing=case.spacing)
        return
    truth = two_distances(labels.cpu().numpy(), case.spacing)
    with drawing.threads(case.threads):
        results = {"op": nearest_two(labels, spacing=case.spacing)}
    if device == "cpu":
        results["numpy"] = tuple(
            torch.from_numpy(d) for d in unet_fast.numpy.nearest_two(labels.numpy(), spacing=case.spacing)
        )
    if labels.numel() * case.labels.count <= MOST_TRUTH:
        results["reference"] = reference.nearest_two(labels, spacing=case.spacing)
    for name, pair in results.items():
        for which, d, expected in zip(("d1", "d2"), pair, truth, strict=True):
            assert d.dtype == torch.float32
            drawing.close(d.double(), torch.from_numpy(expected), DISTANCE, f"{which} of the {name}")


@dataclass(frozen=True)
class Mask(drawing.Run):
    shape: tuple[int, ...]
    zeros: float
    thick: bool
    dtype: torch.dtype
    values: str
    layout: str
    spacing: tuple[float, ...] | None


@st.composite
def distance_transform_cases(draw: st.DrawFn) -> Mask:
    shape = draw(drawing.sometimes_empty(draw(st.sampled_from((flat_shapes, flat_shapes, deep_shapes)))))
    return Mask(
        shape=shape,
        zeros=draw(st.sampled_from((0.0, 0.005, 0.05, 0.4, 0.95, 1.0))),
        thick=draw(st.booleans()),
        dtype=draw(st.sampled_from(MASK_DTYPES)),
        values=draw(drawing.values),
        layout=draw(st.sampled_from(LAYOUTS)),
        spacing=draw(spacings(len(shape) - 1)),
        **draw(drawing.runs),
    )


def check_distance_transform(case: Mask, device: str) -> None:
    g = torch.Generator().manual_seed(case.seed)
    drawn = drawing.tensor(g, case.shape, torch.float64, case.values)
    drawn[torch.rand(case.shape, generator=g) < case.zeros] = 0.0
    if case.dtype.is_floating_point:
        tiny = torch.finfo(case.dtype).smallest_normal
        mask = torch.where((drawn != 0) & (drawn.abs() < tiny), 1.0, drawn).to(case.dtype)
    elif case.dtype == torch.bool:
        mask = drawn != 0
    else:
        mask = (drawn != 0).to(torch.int64).mul(1 + case.seed % 100).to(case.dtype)
    if case.thick:
        mask = mask.view(torch.int64) if case.dtype == torch.uint64 else mask
        mask = mask.repeat_interleave(2, 1).repeat_interleave(3, mask.dim() - 1)
        mask = mask.view(torch.uint64) if case.dtype == torch.uint64 else mask
    mask = drawing.lay_out(mask.to(device), case.layout)
    plain = mask.cpu().double() != 0
    truth = torch.from_numpy(mask_distances(plain.numpy(), case.spacing))
    with drawing.threads(case.threads):
        results = {"op": distance_transform(mask, spacing=case.spacing)}
    if plain.numel() <= MOST_TRUTH:
        results["reference"] = reference.distance_transform(plain, spacing=case.spacing)
    if device == "cpu" and case.dtype != torch.bfloat16:
        results["numpy"] = torch.from_numpy(unet_fast.numpy.distance_transform(mask.numpy(), spacing=case.spacing))
    for name, d in results.items():
        assert d.dtype == torch.float32
        drawing.close(d.double(), truth, DISTANCE, f"distance of the {name}")


@dataclass(frozen=True)
class Weights:
    labels: Labels
    w0: float
    sigma: float
    class_weights: str | tuple[float, float] | None
    inside: bool
    threads: int


@st.composite
def weight_map_cases(draw: st.DrawFn) -> Weights:
    pair = st.tuples(*[st.sampled_from((0.0, 0.25, 1.0, 7.5))] * 2)
    return Weights(
        labels=draw(label_maps(flat_shapes)),
        w0=draw(st.sampled_from((0.0, 1.0, 10.0, 1e6))),
        sigma=draw(st.sampled_from((0.3, 1.0, 5.0, 40.0, 1e5))),
        class_weights=draw(st.sampled_from((None, "balanced")) | pair),
        inside=draw(st.booleans()),
        threads=draw(drawing.thread_counts),
    )


def check_weight_map(case: Weights, device: str) -> None:
    labels = label_map(case.labels, device)
    options = {"w0": case.w0, "sigma": case.sigma, "inside": case.inside}
    pair = torch.tensor(case.class_weights, device=device) if isinstance(case.class_weights, tuple) else None
    ours = {**options, "class_weights": case.class_weights if pair is None else pair}
    if out_of_range(labels):
        if drawing.looks_at_values(device):
            raises(weight_map, labels, **ours)
            raises(unet_fast.numpy.weight_map, labels.numpy(), **options)
        return
    truth = torch.from_numpy(
        weights_of(labels.cpu().numpy().astype(np.int64), **options, class_weights=case.class_weights)
    )
    with drawing.threads(case.threads):
        results = {"op": weight_map(labels, **ours)}
    if labels.numel() * case.labels.count <= MOST_TRUTH:
        results["reference"] = reference.weight_map(labels, **ours)
    if device == "cpu":
        array = unet_fast.numpy.weight_map(labels.numpy(), **options, class_weights=case.class_weights)
        results["numpy"] = torch.from_numpy(array)
    tolerance = {"rtol": WEIGHT_MAP["rtol"], "atol": WEIGHT_MAP["atol"] * max(1.0, case.w0 / 10)}
    for name, weights in results.items():
        assert weights.dtype == torch.float32
        drawing.close(weights.double(), truth, tolerance, f"weights of the {name}")
