"""The check of a machine with a GPU: what is recorded whatever becomes of an item, and all of it without a GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import bench_unet, rows
from benchmarks.common import parse
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import report
from benchmarks.gpu_check.items import BENCHMARKS, HEADLINE, TOTAL, Item, items, measured
from benchmarks.gpu_check.runner import run
from unet_fast.errors import InputError
from unet_fast.ops._record import OPS

PYTHON = sys.executable
ABSENT = ("elasticdeform", "monai", "kornia", "imagecodecs")  # on a machine that was lent
EMIT = "from benchmarks import rows; rows.emit({'figure': 1}); "


def test_the_items_fit_into_nine_minutes_and_the_headline_into_four():
    found = items("cuda", 8, architecture="9.0")
    assert sum(item.limit for item in found) <= TOTAL <= 540
    names = [item.name for item in found]
    until = names.index("unet_compiled") + 1
    assert {"build", "smoke", "unet", "train", "unet_1", "unet_compiled"} == set(names[:until])
    assert sum(item.limit for item in found[:until]) <= HEADLINE <= 240
    assert len(set(names)) == len(names)
    assert found[0].variables["TORCH_CUDA_ARCH_LIST"] == "9.0"
    # every operator with kernels for a GPU by itself or as a junction, in the sizes of a network
    of_networks = {
        "bias_relu",
        "conv_bias_relu",
        "head_cross_entropy",
        "relu_pool_skip",
        "up_conv_into",
        "up_conv_crop_concat",
    }
    assert set(OPS) - {*names, *of_networks} == {"conv3x3"}  # for a CPU only


def test_an_item_that_fails_or_hangs_or_lacks_something_is_recorded_with_its_rows():
    good = run(Item("good", (PYTHON, "-c", "import os; print(os.environ['SOME'])"), 60, {"SOME": "thing"}), 60)
    assert good["outcome"] == "passed" and good["output"] == ["thing"] and good["command"].startswith("SOME=thing ")
    bad = run(Item("bad", (PYTHON, "-c", EMIT + "import sys; print('why'); sys.exit(3)"), 60), 60)
    assert bad["outcome"] == "failed with 3" and bad["output"] == ["why"] and bad["rows"] == [{"figure": 1}]
    # neither a child that holds the output open nor one that ignores the end keeps the runner waiting
    child = EMIT + f"import subprocess, time; subprocess.Popen([{PYTHON!r}, '-c', 'import time; time.sleep(60)']); "
    began = time.monotonic()
    slow = run(Item("slow", (PYTHON, "-c", child + "print('here', flush=True); time.sleep(60)"), 60), 5)
    assert (
        slow["outcome"] == "not finished after 5 s" and slow["rows"] == [{"figure": 1}] and slow["output"] == ["here"]
    )
    assert time.monotonic() - began < 40
    absent = run(Item("absent", ("no-such-program",), 1, needs=("no-such-program",)), 1)
    assert absent["outcome"] == "not run: no-such-program not installed here"


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"a": 1}\n{"b": ')
    assert rows.read(path) == [{"a": 1}]
    assert rows.read(tmp_path / "none") == []


@pytest.fixture
def some_items(monkeypatch, tmp_path):
    """Three items: what a list of them names, and how often each ran."""
    count = (
        "import pathlib; file = pathlib.Path({!r}); file.write_text(file.read_text() + 'x' if file.exists() else 'x'); "
    )

    def make(broken: str = "") -> dict[str, Path]:
        found, files = [], {}
        for name in ("build", "first", "second"):
            files[name] = tmp_path / f"ran-{name}"
            code = count.format(str(files[name])) + ("raise SystemExit(1)" if name == broken else "")
            found.append(Item(name, (PYTHON, "-c", code), 60, vital=name == "build"))
        monkeypatch.setattr(gpu_check, "items", lambda *args, **options: found)
        return files

    return make


def test_without_the_build_nothing_is_measured(some_items, tmp_path):
    files, path = some_items("build"), tmp_path / "report.json"
    with pytest.raises(SystemExit, match="nothing can be measured without the build"):
        gpu_check.main(["--device", "cpu", "--report", str(path)])
    assert not files["first"].exists()
    assert [item["outcome"] for item in report.earlier(path)] == ["failed with 1"]


def test_a_second_run_goes_on_where_the_first_ended(some_items, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    files, path = some_items("first"), tmp_path / "gpu_check.json"
    with pytest.raises(SystemExit, match="not everything passed: first"):
        gpu_check.main(["--device", "cpu", "--report", str(path)])
    assert files["second"].read_text() == "x"  # a failure ends nothing else
    assert (out / "gpu_check.json").read_bytes() == path.read_bytes()
    assert [file.name for file in out.iterdir()] == ["gpu_check.json"]
    some_items()
    gpu_check.main(["--device", "cpu", "--report", str(path), "--resume", str(path)])
    assert {name: file.read_text() for name, file in files.items()} == {"build": "xx", "first": "xx", "second": "x"}
    assert {item["name"]: item["outcome"] for item in report.earlier(path)} == dict.fromkeys(files, "passed")


def test_what_no_budget_is_left_for_is_said(some_items, tmp_path, capsys):
    files = some_items()
    with pytest.raises(SystemExit, match="not everything passed: build"):
        gpu_check.main(["--device", "cpu", "--report", str(tmp_path / "r.json"), "--budget", "1"])
    assert not files["build"].exists() and "the budget of 1 s is used up" in capsys.readouterr().out


def test_a_foreign_report_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="not the report of an earlier gpu-check"):
        report.earlier(path)


def test_all_of_it_runs_without_a_gpu_and_without_optional_packages(tmp_path, monkeypatch):
    """Tiny sizes on the CPU: every item gives its rows, but for the checkers of a GPU's memory."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", paths)  # of the items, which are processes of their own
    path = tmp_path / "gpu_check.json"
    gpu_check.main(["--device", "cpu", "--tiny", "--jobs", "1", "--report", str(path), "--budget", "1200"])
    found = {item["name"]: item for item in json.loads(path.read_text())["items"]}
    missing = {name for name, item in found.items() if not item["rows"]}
    assert missing <= {"memcheck", "racecheck"}, {name: found[name]["output"] for name in missing}
    assert all(found[name]["outcome"].startswith("not run: compute-sanitizer") for name in missing)
    assert {row["op"] for row in found["smoke"]["rows"]} == set(OPS)
    together = found["together"]["rows"]
    there = {row["benchmark"] for row in together}
    swept = {f"{name}_sizes" for name in measured() if "sweep(" in (BENCHMARKS / f"bench_{name}.py").read_text()}
    assert len(swept) >= 6 and there >= {"unet", "train", "junctions", *measured(), *swept}
    unet = [row for row in together if row["benchmark"] == "unet"]
    assert {row["candidate"] for row in unet} == {"plain", "plain, torch.compile", "ours"}
    assert all(row["images_per_second"] > 0 and row["peak_megabytes"] > 0 for row in unet)


@pytest.mark.parametrize(
    ("peers", "expected"),
    [("eager", {"plain", "ours"}), ("compiled", {"plain, torch.compile", "ours"})],
)
def test_a_network_beside_the_peers_that_are_asked_for(peers, expected):
    """As two of the items ask."""
    (item,) = [item for item in items("cuda", 8) if item.name == ("unet" if peers == "eager" else "unet_compiled")]
    assert item.command[item.command.index("--peers") + 1] == peers
    _, options = parse([*item.command[item.command.index("--peers") :], "--device", "cpu"], "")
    assert set(bench_unet.candidates(options, *[lambda: None] * 3)) == expected
