"""Result files, and what is made of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import backends, plots, record, summary
from benchmarks.common import Candidate, Options, Suite
from benchmarks.record import RESULTS, Row, fields
from unet_fast.ops import _backends


def test_the_faster_backend_comes_from_the_result_files(tmp_path):
    assert json.loads(_backends.MEASURED_FILE.read_text()) == backends.table(), "run: python -m benchmarks.backends"
    rows = [
        ("A", "distance_transform", "", "cuda", 2.0), ("A", "distance_transform", "", "triton", 1.0), ("A", None, "", None, 0.5),
        ("B", "distance_transform", "", "cuda", 1.0), ("B", "distance_transform", "", "triton", 1.5),
        ("A", "weight_map", "60 cells", "cuda", 1.0), ("A", "weight_map", "600 cells", "triton", 0.1),
        ("A", "up_conv_crop_concat", "", "cuda", 1.0), ("A", "up_conv_crop_concat", "", "triton", 0.99),
        ("A", "nearest_two", "60 cells", "triton", 1.0), ("A", "nearest_two", "60 cells", "cuda", 0.5),
    ]  # fmt: skip
    rows = [
        fields(Row(case, "", "ours" if op else "peer", median, median, median, 1.0, op, variant, backend))
        for case, op, variant, backend, median in rows
    ]
    rows = [{"candidate": "as it is shown", **row} for row in rows]
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "gpu_check.json").write_text(json.dumps({"records": [{"rows": rows[:5]}, {"rows": rows[5:]}]}))
    found = backends.table(tmp_path)["ops"]
    assert found["distance_transform"] == {"fastest": "triton", "triton over cuda": 0.866, "cases": 2}
    assert "weight_map" not in found  # two different cases
    assert found["nearest_two"]["fastest"] == "cuda"
    # within the spread; and the op that runs the same kernels
    assert found["up_conv_crop_concat"]["fastest"] == found["up_conv_into"]["fastest"] == "cuda"


def test_fused_networks_are_the_default_where_they_were_faster(tmp_path):
    times = {"ours": 2.0, "plain": 4.0, "ours, one graph": 3.0, "plain, one graph": 3.0, "plain, torch.compile": 0.1}
    rows = [
        {"benchmark": "unet", "case": "A", "role": "", "candidate": name, "median": ms} for name, ms in times.items()
    ]
    for folder, gpu in (("card", "a card"), ("processor", None)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "unet.json").write_text(json.dumps({"gpu": gpu, "rows": rows}))
    assert backends.table(tmp_path)["networks"] == {"fused over plain": 0.707, "cases": 2}
    (tmp_path / "card" / "unet.json").unlink()
    assert backends.table(tmp_path)["networks"] is None


def test_rows_say_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.common.bandwidth", lambda device: 1e9)
    suite = Suite("nearest_two_sizes", Options(quick=True), picture=True)
    ours = suite.options.ours("nearest_two", lambda: None, "60 cells")
    others = {"a peer": lambda: None, "a copy": Candidate(lambda: None, role="floor")}
    suite.measure("4 x 8x8", {**ours, **others}, rounds=1, seconds=0.0, images=4, side=8)
    suite.finish()
    (path,) = tmp_path.glob("*/*.json")
    result = json.loads(path.read_text())
    assert path.with_suffix(".png").exists()
    assert [row["candidate"] for row in result["rows"]] == ["nearest_two, 60 cells", "a peer", "a copy"]
    assert [row["role"] for row in result["rows"]] == ["ours", "peer", "floor"]
    first = result["rows"][0]
    assert (first["op"], first["variant"], first["images"], first["side"]) == ("nearest_two", "60 cells", 4, 8)
    assert first["images_per_second"] == pytest.approx(4e3 / first["median"])
    assert "op" not in result["rows"][1] and "peak_megabytes" not in first
    assert len(path.read_text().splitlines()) < 20


def test_pieces_of_a_file_join_those_of_the_same_conditions(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.common.bandwidth", lambda device: 1e9)
    commits = iter(("a", "a", "a", "b"))
    monkeypatch.setattr("benchmarks.common.commit", lambda: next(commits))
    cases = []
    for case in ("first", "second", "first", "third"):
        suite = Suite("dropin", Options(quick=True, only=(case,)))
        suite.measure(case, {"one": lambda: None, "two": lambda: None}, rounds=1, seconds=0.0)
        suite.finish()
        (path,) = tmp_path.glob("*/*.json")
        cases.append([row["case"] for row in json.loads(path.read_text())["rows"][::2]])
    assert cases == [["first"], ["first", "second"], ["second", "first"], ["third"]]


def test_a_floor_and_other_ones_of_ours_are_no_peers(tmp_path):
    rows = [
        Row("A", "x", "ours", 2.0, 2.0, 2.0, 1.0, op="distance_transform"),
        Row("A", "a copy", "floor", 0.1, 0.1, 0.1, 0.05),
        Row("A", "distance_transform by another way", "peer", 3.0, 3.0, 3.0, 1.5),
        Row("B", "y", "ours", 1.0, 1.0, 1.0, 1.0),
    ]
    head = {"commit": "abc", "processor": "p", "threads": 1, "torch": "t", "python": "3", "gpu": None}
    record.write(tmp_path / "some.json", {**head, "rows": [fields(row) for row in rows]})
    (only,), _ = summary.comparisons(tmp_path)
    assert (only.case, only.ours, only.peer, only.theirs) == ("A", 2.0, "distance_transform by another way", 3.0)
    assert plots.draw("some", json.loads((tmp_path / "some.json").read_text()), tmp_path / "some.png").exists()


def test_committed_results_are_short_and_complete():
    files = [path for path in RESULTS.rglob("*.json") if ".quick" not in path.name]
    assert sum(len(path.read_text().splitlines()) for path in files) < 4000
    known = set(Row.__dataclass_fields__)
    for path in files:
        for row in json.loads(path.read_text()).get("rows", []):
            if "case" in row:
                assert set(row) <= known and row["role"] in ("ours", "peer", "floor"), path


def test_benchmarks_and_tests_do_not_need_each_other():
    root = RESULTS.parent.parent
    for folder, other in (("benchmarks", "tests"), ("tests", "benchmarks")):
        for path in (root / folder).rglob("*.py"):
            lines = path.read_text().splitlines()
            assert not [line for line in lines if line.startswith((f"from {other}", f"import {other}"))], path
