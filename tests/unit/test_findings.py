"""The codes of findings, and the page that explains them."""

import re
from pathlib import Path

from iskd.audit.findings import Code

PAGE = Path(__file__).parents[2] / "docs/audit.md"


def test_the_auditors_page_explains_every_code_as_the_command_does() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    documented = dict(rows)
    assert {code: documented.get(code) for code in Code} == {
        code: code.explanation for code in Code
    }
