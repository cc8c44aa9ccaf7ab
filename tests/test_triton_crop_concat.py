"""The Triton kernels of crop_concat, interpreted on the CPU: the tests of the op, once more."""

from __future__ import annotations

from tests.devices import run_interpreted


def test_the_tests_of_the_op():
    # numeric derivatives are hundreds of launches, each of them slow here; fuzzing checks the gradient as well
    run_interpreted("tests/test_crop_concat.py", "-k", "not gradients_and_registration")


def test_fuzzed():
    run_interpreted("tests/test_fuzz.py", "-k", "cpu-crop_concat", cases=4)
