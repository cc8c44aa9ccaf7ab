"""The Triton kernels of elastic_warp, interpreted on the CPU."""

from __future__ import annotations

from tests.devices import run_interpreted


def test_interpreted_kernels():
    run_interpreted("tests/interpreted_warp.py")
