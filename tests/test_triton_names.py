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


def aliases(source: str) -> list[str]:
    """``a = b`` inside a loop where b still has the value from before this round: to Triton such a name has not changed."""
    found = []
    for loop in ast.walk(ast.parse(source)):
        if not isinstance(loop, ast.For | ast.While):
            continue
        new: set[str] = set()  # computed in this round of the loop
        for node in sorted((n for n in ast.walk(loop) if isinstance(n, ast.Assign)), key=lambda n: n.lineno):
            if isinstance(node.value, ast.Name) and node.value.id not in new:
                found.append(ast.unparse(node))
            new |= set().union(*map(assigned, node.targets))
    return found


def kernels(source: str) -> list[str]:
    """The functions of a file that Triton compiles."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    decorated = [(node, [ast.unparse(each) for each in node.decorator_list]) for node in functions]
    return [ast.unparse(node) for node, names in decorated if any(each.startswith("triton.jit") for each in names)]


def test_it_finds_what_went_wrong():
    wrong = "def f(n, p):\n    b = p\n    for k in range(n):\n        b = p\n        p = p + 1\n    return b\n"
    assert shared_in_loops(wrong) == ["f: b and p"]
    assert shared_in_loops(wrong.replace("b = p\n    for", "b = p + 0\n    for")) == []
    assert shared_in_loops(wrong.replace("        p = p + 1\n", "")) == []
    assert aliases(wrong) == ["b = p"]
    assert aliases("for k in range(n):\n    b = a\n    a = a + 1") == ["b = a"]
    assert aliases("for k in range(n):\n    c = a + 1\n    a = c") == []
    assert kernels("@triton.jit\ndef f(x):\n    pass\ndef g():\n    pass") == ["@triton.jit\ndef f(x):\n    pass"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_kernel_has_two_names_for_what_a_loop_carries(path):
    source = path.read_text()
    assert shared_in_loops(source) == []
    assert [found for kernel in kernels(source) for found in aliases(kernel)] == []
