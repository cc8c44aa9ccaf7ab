"""The report from a machine with a GPU: its stages are recorded whatever becomes of them."""

from __future__ import annotations

import json
import sys
import time

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Stage, run, save, stages
from tests.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_stages_fit_into_nine_minutes(device):
    found = stages(device, jobs=2)
    assert sum(stage.limit for stage in found) <= gpu_check.TOTAL <= 540
    tests = next(stage for stage in found if stage.name == "tests").command
    assert {"tests/test_crop_concat.py", "tests/test_elastic_warp.py", "tests/test_fuzz.py"} <= set(tests)
    assert "tests/test_cli.py" not in tests


def test_a_stage_that_fails_or_hangs_or_lacks_something_is_recorded():
    python = sys.executable
    good = run(Stage("good", (python, "-c", "import os; print(os.environ['SOME'])"), 60, {"SOME": "thing"}))
    assert good["outcome"] == "passed" and good["output"] == ["thing"] and good["command"].startswith("SOME=thing ")
    bad = run(Stage("bad", (python, "-c", "import sys; print('why'); sys.exit(3)"), 60))
    assert bad["outcome"] == "failed with 3" and bad["output"] == ["why"]
    # a child that holds the pipe open must not keep the stage waiting
    child = (
        f"import subprocess, time; subprocess.Popen([{python!r}, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    began = time.monotonic()
    assert run(Stage("slow", (python, "-c", child), 1))["outcome"] == "not finished after 1 s"
    assert time.monotonic() - began < 30
    absent = run(Stage("absent", ("no-such-program",), 1, needs=("no-such-program",)))
    assert absent["outcome"] == "not run: no-such-program not installed here"


def test_report_is_copied(tmp_path, monkeypatch):
    figures, out = tmp_path / "some-gpu", tmp_path / "out"
    figures.mkdir()
    (figures / "weight_map.quick.json").write_text("{}")
    monkeypatch.setenv("OUT", str(out))
    path = figures / "gpu_check.json"
    save(path, {"figures": {"weight_map.quick.json": []}}, figures)
    assert json.loads((out / "some-gpu" / "gpu_check.json").read_text()) == json.loads(path.read_text())
    assert (out / "some-gpu" / "weight_map.quick.json").exists()
