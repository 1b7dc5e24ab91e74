"""docs/gpu.md names every module with a branch that only a card takes, and tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "scripts/iskd"
PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
ABOUT_A_CARD = re.compile(r"\bcuda\b|device\.type (==|!=) '(cpu|cuda)'")

A_TRANSFER = re.compile(r"\.cpu\(\)|\.to\([^()]*\bdevice\b|\.to\('(cpu|cuda|meta)'|\.item\(\)")
BRANCHES, TRANSFERS = PAGE.split("## Branches")[1].split("## Transfers")


def code_of(path: Path) -> str:
    """A module's code without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(tree)


def modules_with(pattern: re.Pattern[str]) -> set[str]:
    """Name the modules whose code has something in it."""
    return {
        path.relative_to(LIBRARY).as_posix()
        for path in LIBRARY.rglob("*.py")
        if pattern.search(code_of(path))
    }


def test_every_module_with_a_branch_for_cards_is_listed_once() -> None:
    branching = modules_with(ABOUT_A_CARD)
    assert {"training/loop.py", "evaluation/efficiency.py"} <= branching
    assert sorted(name for name in branching if BRANCHES.count(f"`{name}`") != 1) == []


def test_every_module_that_moves_something_is_listed_once() -> None:
    moving = modules_with(A_TRANSFER)
    assert {"training/curve.py", "models/folder.py", "runtime/distributed.py"} <= moving
    assert sorted(name for name in moving if TRANSFERS.count(f"`{name}`") != 1) == []


def test_what_the_page_names_exists() -> None:
    modules = re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE)
    assert len(modules) > 20
    for name in modules:
        assert (LIBRARY / name).is_file() or (ROOT / name).is_file(), name
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests/gpu").glob("*.py")
    )
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests, name
