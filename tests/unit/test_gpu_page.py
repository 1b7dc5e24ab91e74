"""docs/gpu.md names every module with a branch that only a card takes, and tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "scripts/iskd"
PAGE = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
ABOUT_A_CARD = re.compile(r"\bcuda\b|device\.type (==|!=) '(cpu|cuda)'")


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


def test_every_module_with_a_branch_for_cards_is_listed() -> None:
    branching = {
        path.relative_to(LIBRARY).as_posix()
        for path in LIBRARY.rglob("*.py")
        if ABOUT_A_CARD.search(code_of(path))
    }
    assert {"training/loop.py", "evaluation/efficiency.py"} <= branching
    assert sorted(name for name in branching if f"`{name}`" not in PAGE) == []


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
