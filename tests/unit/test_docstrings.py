"""Docstrings keep to the code: a sentence for each module, arguments and errors by name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FILES = sorted(SCRIPTS.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(body: list[ast.stmt]) -> Iterator[tuple[str, Function, str]]:
    """Give the public functions and methods with their docstrings."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body)
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""


def section(docstring: str, name: str) -> str:
    found = re.search(rf"^{name}:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def raised(node: ast.AST) -> Iterator[str]:
    """Name the errors that leave a function by a ``raise`` of its own."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            error = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            if isinstance(error, ast.Name) and error.id[0].isupper():
                yield error.id
        elif isinstance(inner, ast.Try):
            caught = " ".join(ast.unparse(h.type) for h in inner.handlers if h.type is not None)
            yield from (name for name in raised(inner) if name not in re.findall(r"\w+", caught))
        elif not isinstance(inner, Function | ast.Lambda | ast.ClassDef):
            yield from raised(inner)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SCRIPTS).as_posix())
def test_a_module_says_what_it_is_for_in_one_sentence(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    first = docstring.split("\n\n")[0].splitlines()
    assert len(first) in (1, 2)
    assert re.match(r"([A-Z]|lm-eval).*[.?:]$", docstring.splitlines()[0])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SCRIPTS).as_posix())
def test_public_functions_name_their_arguments_and_errors(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for name, node, docstring in functions(tree.body):
        spec = node.args
        own = {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]}
        own |= {a.arg for a in (spec.vararg, spec.kwarg) if a is not None}
        # Several arguments may share a line: `x, y: what`.
        lines = re.findall(
            r"^ {4}([\w*]+(?:, [\w*]+)*):(?: |$)", section(docstring, "Args"), re.MULTILINE
        )
        told = {word.strip().lstrip("*") for line in lines for word in line.split(",")}
        assert told <= own, f"{name} has no {told - own}"
        errors = set(raised(node))
        assert errors <= set(re.findall(r"\w+", section(docstring, "Raises"))), f"{name}: {errors}"
