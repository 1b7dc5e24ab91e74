"""Tests that docs/promises.md names are there, and CI runs them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/promises.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    for file, test in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file}::{test}"
        assert Path(file).parts[1] in ("audit", "integration", "slurm", "unit", "workflow")


def test_every_promise_is_shown() -> None:
    rows = re.findall(r"^\| (?!Promise|-)(.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) > 20
    for promise, shown in rows:
        assert "tests/" in shown or "](" in shown, promise
