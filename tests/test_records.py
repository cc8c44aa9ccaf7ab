"""Every operator with a record, in every place: its samples, and random ones, against its reference, gradients included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import drawing
from tests.places import needs
from unet_fast.ops._record import FLOATS, OPS, Draw

pytestmark = pytest.mark.kernels

each_op = pytest.mark.parametrize("name", OPS)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels_last"])
@each_op
def test_samples_agree_with_the_reference(name, form, dtype, place, generator):
    """What the tests of registration and the check of a GPU begin with: usual, smallest and empty batches."""
    op, draw = OPS[name], Draw(generator, dtype, form, place)
    for size in ((2, 11, 14), (1, 4, 5), (0, 6, 6)):
        op.check(op.sample(draw, *size))


@needs("speed")
@each_op
def test_samples_of_any_size_and_layout_agree(name, place):
    op = OPS[name]

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        seed=st.integers(0, 2**31 - 1),
        size=st.tuples(st.integers(0, 3), st.integers(4, 24), st.integers(5, 40)),
        dtype=st.sampled_from(FLOATS),
        layout=st.sampled_from(
            ("contiguous", "channels_last", "slice", "channels_last_slice", "transposed", "steps", "offset")
        ),
    )
    def run(seed: int, size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
        drawn = op.sample(Draw(torch.Generator().manual_seed(seed), dtype), *size)
        op.check(tuple(drawing.lay_out(tensor, layout).to(place) for tensor in drawn))

    run()
