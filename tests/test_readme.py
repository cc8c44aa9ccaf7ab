"""The README's Python is run, and its figures stand in the result files."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import tables

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
    places = [match for page in tables.pages() for match in tables.PLACE.finditer(page.read_text())]
    assert places
    for match in places:
        assert tables.text_for(match["name"]) in match[0]


def test_every_picture_is_there():
    for page in tables.pages():
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / name).is_file()
