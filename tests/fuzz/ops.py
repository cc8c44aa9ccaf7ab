"""Every op's cases and check, and the run of so many of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import fuzz as _package
from tests import places
from tests.fuzz import drawing
from unet_fast.ops import _backends, _record, use_backend


@dataclass(frozen=True)
class Op:
    """``check(case, device)`` raises where the op is wrong for this case."""

    cases: st.SearchStrategy[Any]
    check: Callable[[Any, str], None]


def samples(name: str) -> Op:
    """For an operator without cases of its own: the samples of its record, of any size, dtype and layout."""
    record = _record.OPS[name]

    def check(case: tuple[Any, ...], device: str) -> None:
        seed, size, dtype, layout = case
        drawn = record.sample(_record.Draw(torch.Generator().manual_seed(seed), dtype), *size)
        record.check(tuple(drawing.lay_out(tensor, layout).to(device) for tensor in drawn))

    sizes = st.tuples(st.integers(0, 3), st.integers(4, 24), st.integers(5, 40))
    layouts = st.sampled_from([layout for layout in drawing.LAYOUTS if layout != "expanded"])
    return Op(st.tuples(st.integers(0, 2**31 - 1), sizes, st.sampled_from(_record.FLOATS), layouts), check)


_WITH_CASES = [
    importlib.import_module(f"{_package.__name__}.{each.name}")
    for each in pkgutil.iter_modules(_package.__path__)
    if each.name not in ("__main__", "drawing", "ops", "worker")
]


def _find(name: str) -> Op:
    """``<name>_cases()`` and ``check_<name>`` of one of the files here, else the samples of the record."""
    for module in _WITH_CASES:
        if hasattr(module, f"check_{name}"):
            return Op(getattr(module, f"{name}_cases")(), getattr(module, f"check_{name}"))
    return samples(name)


OPS = {name: _find(name) for name in _record.OPS}


def why_not(name: str, device: str) -> str | None:
    """None, or why the backend that UNET_FAST_BACKEND (or ``use_backend``) asks for cannot run the op there."""
    wish = _backends.wish()
    return None if wish == "auto" else _backends.why_not(wish, name, torch.device(device).type)


def fuzz(
    name: str | Op, cases: int, *, start: int = 0, device: str = "cpu", watch: Callable[[Any], None] = lambda case: None
) -> None:
    """Check so many cases of the op ``name`` (or of another generator of cases); raises at the first wrong one, after hypothesis has shrunk it.

    ``start`` is the seed of the draws; ``watch`` is told every case before it runs.
    """
    op = OPS[name] if isinstance(name, str) else name

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

    with use_backend(places.wish(device)):
        run()
