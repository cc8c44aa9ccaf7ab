"""The Python and the commands in the README and the docs run, and their figures stand in the result files.

Fragments that cannot run by themselves are fenced as ``py`` instead of ``python``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from typer.core import TyperArgument

from benchmarks import tables
from tools.peers import let_torchvision_load
from unet_fast.cli import app

PAGES = {page.name: page.read_text() for page in [*tables.pages(), tables.ROOT / "CONTRIBUTING.md"]}

# page -> the library that its examples need
PEERS = {"with-monai.md": "monai", "with-nnunet.md": "dynamic_network_architectures", "with-lightning.md": "lightning"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_the_examples_run(page):
    if page in PEERS:
        let_torchvision_load()
        pytest.importorskip(PEERS[page], reason=f"{PEERS[page]} is not installed: python -m pip install --group test")
    space: dict[str, object] = {}
    for block in blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), space)
    if page == "README.md":
        assert space["x"].shape == (1, 128, 100, 100)
        assert all(weight.grad.isfinite().all() for weight in space["net"].parameters())
        assert space["labels"].shape == (1, 300, 413) and space["cells"].dtype == torch.int64


def commands() -> list[tuple[str, list[str]]]:
    """Every ``unet-fast`` line of the pages, without its comment."""
    lines = [line for text in PAGES.values() for block in blocks(text, "sh") for line in block.splitlines()]
    return [(line, shlex.split(line, comments=True)[1:]) for line in lines if line.startswith("unet-fast ")]


def test_the_commands_have_the_options_that_they_are_shown_with():
    known = typer.main.get_command(app).commands
    assert {words[0] for _, words in commands()} >= {"train", "predict", "evaluate", "preview", "recipes"}
    for line, (name, *words) in commands():
        context = known[name].make_context(name, [], resilient_parsing=True)
        context.resilient_parsing = False  # from here on an unknown option raises
        _, rest, _ = known[name].make_parser(context).parse_args(list(words))
        assert len(rest) <= sum(isinstance(each, TyperArgument) for each in known[name].params), line


def test_the_tables_are_those_of_the_result_files():
    places = [match for text in PAGES.values() for match in tables.PLACE.finditer(text)]
    assert places
    for match in places:
        assert tables.text_for(match["name"]) in match[0]


def test_every_picture_and_page_is_there_and_every_picture_is_shown():
    shown: set[Path] = set()
    for page in tables.pages():
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose)
        targets = {(page.parent / link).resolve() for link in links if "://" not in link}
        assert [str(target) for target in targets if not target.exists()] == []
        shown |= targets
    results = tables.ROOT / "benchmarks" / "results"
    pictures = {*results.rglob("*.png"), *(tables.ROOT / "docs" / "images").iterdir()}
    assert sorted(pictures - shown) == []
