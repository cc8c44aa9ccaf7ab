"""Every operator with a record, in every place: its samples, and random ones, against its reference, gradients included."""

from __future__ import annotations

import pytest
import torch

from tests.fuzz.ops import fuzz, samples
from tests.places import needs
from unet_fast.ops._record import FLOATS, OPS, Draw

pytestmark = [pytest.mark.kernels, pytest.mark.core]

each_op = pytest.mark.parametrize("name", OPS)


@pytest.mark.parametrize(
    ("form", "dtype"),
    # without speed half of them: every dtype, in both layouts
    [pytest.param(form, dtype, marks=needs("speed") if (i + j) % 2 else ())
     for i, form in enumerate((torch.contiguous_format, torch.channels_last)) for j, dtype in enumerate(FLOATS)],
    ids=[f"{form}-{str(dtype).removeprefix('torch.')}" for form in ("planar", "channels_last") for dtype in FLOATS],
)  # fmt: skip
@each_op
def test_samples_agree_with_the_reference(name, form, dtype, place, generator):
    """What the tests of registration and the check of a GPU begin with: usual, smallest and empty batches."""
    op, draw = OPS[name], Draw(generator, dtype, form, place)
    for size in ((2, 11, 14), (1, 4, 5), (0, 6, 6)):
        op.check(op.sample(draw, *size))


@needs("speed")
@each_op
def test_samples_of_any_size_and_layout_agree(name, place):
    fuzz(samples(name), 25, device=place)
