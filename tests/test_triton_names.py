"""What Triton's compiler gets wrong and its interpreter does not: of two names for one value, a loop carries only one.

    before = previous
    for k in range(n):
        before = previous       # after the loop, before is still what it was above it
        previous = next(previous)

Seen on a GPU, where a B-spline's coefficients came out wrong. Nothing shows it without one, so the sources are looked through.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import unet_fast

FILES = sorted((Path(inspect.getfile(unet_fast)).parent / "triton").glob("*.py"))


def assigned(node: ast.AST) -> set[str]:
    """The names that a statement, or those inside it, give values to."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def shared_in_loops(source: str) -> list[str]:
    """``a = b`` ahead of a loop that gives new values to both, before either got another one: function, a and b."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        pairs: set[tuple[str, str]] = set()
        for statement in function.body:
            new = assigned(statement)
            if isinstance(statement, ast.For | ast.While):
                found += [f"{function.name}: {a} and {b}" for a, b in pairs if {a, b} <= new]
            pairs = {pair for pair in pairs if not new & set(pair)}
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
                pairs |= {(name, statement.value.id) for name in new}
    return found


def test_it_finds_what_went_wrong():
    wrong = "def f(n, p):\n    b = p\n    for k in range(n):\n        b = p\n        p = p + 1\n    return b\n"
    assert shared_in_loops(wrong) == ["f: b and p"]
    assert shared_in_loops(wrong.replace("b = p\n    for", "b = p + 0\n    for")) == []
    assert shared_in_loops(wrong.replace("        p = p + 1\n", "")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_kernel_has_two_names_for_what_a_loop_carries(path):
    assert shared_in_loops(path.read_text()) == []
