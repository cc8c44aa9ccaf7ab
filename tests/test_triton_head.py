"""The Triton kernel of head_cross_entropy, interpreted on the CPU: the tests of the op once more."""

from __future__ import annotations

from tests.devices import run_interpreted


def test_the_tests_of_the_op():
    # left out: numeric derivatives, what compiles, most of the larger images, which are slow here
    by_dtype = "(matches_torch and (case0 or case2)) or middle_of_a_vector or nothing_of_ignored"
    others = "ignored_pixels_count or empty_volumes or shows_itself"
    run_interpreted("tests/test_head_cross_entropy.py", "-k", f"(({by_dtype}) and (dtype0 or dtype3)) or {others}")
