"""The README's Python is run, and its figures stand in the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import tables
from benchmarks.common import RESULTS

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    loss = space["loss"]
    assert loss.isfinite() and space["logits"].grad.abs().sum() > 0
    assert space["x"].shape == (1, 128, 392, 392)


def test_the_tables_are_those_of_the_result_files():
    places = {match["name"]: match[0] for match in tables.PLACE.finditer(TEXT)}
    assert places
    for name, text in places.items():
        assert tables.table(json.loads((RESULTS / f"{name}.json").read_text())) in text


def test_every_picture_is_there():
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (tables.README.parent / name).is_file()
