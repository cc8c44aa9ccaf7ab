"""A short form of every campaign of ``make torture``, in a process that has no threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("campaign", ["signals", "weights", "images", "disks", "settings"])
def test_torture(campaign: str) -> None:
    command = [sys.executable, "-m", "tests.torture", campaign, "--scale", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing wrong" in done.stdout and " 0 wrong" in done.stdout
