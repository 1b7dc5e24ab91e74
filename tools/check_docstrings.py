"""Check that docstrings keep to the code: a sentence for each module, arguments and errors by name.

ruff sees that a docstring is there. What is said in it about arguments that are gone, or not said
about an error that a function raises itself, is found here.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(body: list[ast.stmt]) -> Iterator[tuple[str, Function, str]]:
    """Give the public functions and methods with their docstrings."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body)
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""


def section(docstring: str, name: str) -> str:
    """Give one section of a docstring, empty where there is none."""
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


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Give what is wrong with a module's docstrings, each with its line."""
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree) or ""
    first = docstring.split("\n\n")[0].splitlines()
    if len(first) not in (1, 2) or not re.match(r"([A-Z]|lm-eval).*[.?:]$", first[0]):
        yield 1, "the module's docstring does not begin with one sentence"
    for name, node, docstring in functions(tree.body):
        spec = node.args
        own = {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]}
        own |= {a.arg for a in (spec.vararg, spec.kwarg) if a is not None}
        # Several arguments may share a line: `x, y: what`.
        lines = re.findall(
            r"^ {4}([\w*]+(?:, [\w*]+)*):(?: |$)", section(docstring, "Args"), re.MULTILINE
        )
        documented = {word.strip().lstrip("*") for line in lines for word in line.split(",")}
        for word in sorted(documented - own):
            yield node.lineno, f"{name} has no argument {word}"
        for error in sorted({*raised(node)} - {*re.findall(r"\w+", section(docstring, "Raises"))}):
            yield node.lineno, f"{name} raises {error}, which its docstring does not say"


def main() -> int:
    """Check all modules and scripts; 1 where something is wrong."""
    found = [
        f"{path.relative_to(TOP)}:{line}: {fault}"
        for path in sorted((TOP / "scripts").rglob("*.py"))
        for line, fault in faults(path.read_text(encoding="utf-8"))
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
