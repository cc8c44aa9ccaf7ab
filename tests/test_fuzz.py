"""A few fuzzed cases of every op, on every device; ``make fuzz`` runs 10,000 of each."""

from __future__ import annotations

import os

import pytest

from tests import places
from tests.fuzz.ops import OPS, fuzz, why_not
from tests.places import slow
from unet_fast.ops import _record

pytestmark = pytest.mark.kernels

# the cases are the same in every place; where a launch takes long, the first few of them
CASES = int(os.environ.get("FUZZ_CASES", {"emulated": "15", "interpreted": "4"}.get(places.PLACE, "40")))


def test_every_operator_is_fuzzed():
    assert set(OPS) == set(_record.OPS)


# several launches a case, or large ones
LONG = ("bias_relu", "elastic_warp", "relu_pool_skip", "nearest_two", "weight_map")


@pytest.mark.parametrize("op", [*slow(*LONG), *(name for name in OPS if name not in LONG)])
def test_op_agrees_with_the_truth(op, place):
    reason = why_not(op, place)
    if reason is not None:
        pytest.skip(f"not fuzzed: {reason}")
    fuzz(op, CASES, device=place)
