"""The Triton kernel of head_cross_entropy, interpreted on the CPU: the tests of the op once more."""

from __future__ import annotations

from tests.devices import run_interpreted


def test_the_tests_of_the_op():
    # left out: numeric derivatives, what compiles, most of the larger images, which are slow here
    sample = "matches_torch and (case0 or case2) and (dtype0 or dtype3)"
    run_interpreted("tests/test_head_cross_entropy.py", "-k", f"({sample}) or ignored_pixels or empty_volumes")
