"""A few fuzzed cases of every op, on every device; ``make fuzz`` runs 10,000 of each."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.ops import OPS, fuzz
from unet_fast.ops import _backends

CASES = int(os.environ.get("FUZZ_CASES", "50"))


@pytest.mark.parametrize("op", OPS)
def test_op_agrees_with_the_truth(op, place):
    if _backends.wish() != "auto":
        reason = _backends.why_not(_backends.wish(), op, place)
        if reason is not None:
            pytest.skip(f"not fuzzed: {reason}")
    fuzz(op, CASES, device=place)
