"""What the fuzzed cases are made of: sizes, memory layouts, values, thread counts; and how results are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from tests.places import has

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# How a tensor lies in memory. Whatever lies around or between its elements is NaN, or the largest integer.
LAYOUTS = (
    "dense",
    "channels_last",
    "slice",
    "channels_last_slice",
    "transposed",
    "steps",
    "offset",  # one element past an aligned address
    "expanded",  # one sample that stands for the whole batch
)
# How numbers are drawn: "coarse" gives ties and zeros of both signs, the last three what no kernel hopes for.
VALUES = ("plain", "plain", "coarse", "nan", "inf", "mixed")

layouts = st.sampled_from(LAYOUTS)
values = st.sampled_from(VALUES)
floats = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**31)
thread_counts = st.sampled_from((1, 1, 2, 3))
runs = st.fixed_dictionaries({"threads": thread_counts, "seed": seeds})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every case has: on how many threads it runs, and what its numbers are drawn from (:data:`runs`)."""

    threads: int
    seed: int


def sides(largest: int) -> st.SearchStrategy[int]:
    """A side of an image: every size up to ``largest``, and now and then one that fills vectors and blocks."""
    return st.integers(1, largest) | st.sampled_from((1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65)).filter(
        lambda side: side <= 6 * largest
    )


@st.composite
def sometimes_empty(draw: st.DrawFn, shape: st.SearchStrategy[tuple[int, ...]]) -> tuple[int, ...]:
    """A shape, in one case of twenty-five or so with an axis of length 0."""
    sizes = list(draw(shape))
    axis = 99 - draw(st.integers(0, 99))  # shrinks to a shape that is not empty
    if axis < len(sizes):
        sizes[axis] = 0
    return tuple(sizes)


def tensor(
    generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, kind: str = "plain", device: str = "cpu"
) -> torch.Tensor:
    """Normal numbers (small integers for an integer dtype), some of them special as ``kind`` says."""
    drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if not dtype.is_floating_point:
        return (drawn.abs() * 30).to(dtype).to(device)
    if kind == "coarse":
        drawn = drawn.mul(2).round().div(2)
    special = {"nan": [torch.nan], "inf": [torch.inf, -torch.inf], "mixed": [torch.nan, torch.inf, -torch.inf, 0.0]}
    for value in special.get(kind, []):
        drawn[torch.rand(tuple(shape), generator=generator) < 0.03] = value
    return drawn.to(dtype).to(device)


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of ``tensor`` (of its first sample for "expanded") in another layout."""
    channels = 1 if tensor.dim() > 1 else 0
    if layout == "channels_last":
        return tensor.movedim(channels, -1).contiguous().movedim(-1, channels)
    if layout == "slice":
        return _inside(tensor)
    if layout == "channels_last_slice":
        return _inside(tensor.movedim(channels, -1)).movedim(-1, channels)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "steps" and tensor.dim():
        wide = _poison([*tensor.shape[:-1], 2 * tensor.shape[-1]], tensor)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "offset":
        flat = _poison([tensor.numel() + 1], tensor)
        flat[1:] = tensor.reshape(-1)
        return flat[1:].view(tensor.shape)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].clone().expand(tensor.shape)
    return tensor.contiguous()


def _inside(tensor: torch.Tensor) -> torch.Tensor:
    around = _poison([size + 3 for size in tensor.shape], tensor)
    inner = tuple(slice(1, size + 1) for size in tensor.shape)
    around[inner] = tensor
    return around[inner]


def _poison(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    if like.dtype == torch.bool:
        value: float = True
    else:
        value = torch.nan if like.dtype.is_floating_point else torch.iinfo(like.dtype).max
    return torch.full(list(shape), value, dtype=like.dtype, device=like.device)


def looks_at_values(device: str) -> bool:
    """Whether the kernels there raise for what they read. A GPU would have to be waited for."""
    return device == "cpu" and has("errors")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the kernels on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of biases, weights and sums beside maps of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def least(dtype: torch.dtype) -> float:
    """The distance of neighbouring numbers beside 0."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal * limits.eps


def close(got: torch.Tensor, truth: torch.Tensor, tolerance: dict[str, float], what: str) -> None:
    """Raise unless both agree, non-finite numbers included."""
    torch.testing.assert_close(
        got,
        truth,
        **tolerance,
        equal_nan=True,
        check_dtype=False,
        check_device=False,
        msg=lambda text: f"{what}: {text}",
    )


def close_to_largest(got: torch.Tensor, truth: torch.Tensor, tolerance: float, what: str, floor: float = 0.0) -> None:
    """As :func:`close`, the tolerance being one of the largest finite number of ``truth`` (at least ``floor``).

    For sums, which may be NaN or infinite, as the order of their terms has it, where they are not finite.
    """
    got, truth = got.detach().double(), truth.detach().double()
    truth = torch.where(truth.isfinite() | got.isfinite(), truth, got)
    finite = truth[truth.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    close(got, truth, {"rtol": tolerance, "atol": tolerance * max(largest, floor)}, what)
