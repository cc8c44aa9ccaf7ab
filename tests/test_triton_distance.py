"""The Triton kernels of nearest_two, distance_transform and weight_map, interpreted on the CPU."""

from __future__ import annotations

from tests.devices import run_interpreted


def test_interpreted():
    run_interpreted("tests/interpreted_distance.py")
