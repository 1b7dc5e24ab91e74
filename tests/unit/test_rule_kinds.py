"""The audit knows of every rule what it is for, and of none two things."""

import re
from pathlib import Path

from iskd.audit import rule_kinds

ROOT = Path(__file__).resolve().parents[2]
RULE = re.compile(r"^(?:rule|use rule \w+ as) (\w+)", re.MULTILINE)
# One makes the order of the steps, of nothing or of a model; the other asks a teacher on behalf of
# trainings, and its answers are checked by iskd.audit.answers.
NEITHER = {"plan_substitutions", "record_teacher"}


def test_every_rule_is_of_one_kind() -> None:
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in RULE.findall(path.read_text(encoding="utf-8"))
    }
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    kinds = [value for name, value in vars(rule_kinds).items() if name.isupper()]
    for rule in (rules & scripts) - NEITHER:
        assert sum(rule.startswith(kind) for kind in kinds) == 1, rule
    # Nothing is listed that no rule bears.
    for beginning in (name for kind in kinds for name in kind):
        assert any(rule.startswith(beginning) for rule in rules), beginning
