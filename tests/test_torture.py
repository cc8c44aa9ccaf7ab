"""A short form of every campaign of ``make torture``, in a process that has no threads."""

from __future__ import annotations

import pytest

from tests import processes


@pytest.mark.parametrize("campaign", ["signals", "weights", "images", "disks", "settings"])
def test_torture(campaign: str) -> None:
    done = processes.run("-m", "tests.torture", campaign, "--scale", "0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"nothing wrong" in done.stdout and b" 0 wrong" in done.stdout
