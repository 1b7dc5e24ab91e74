"""What a dry run says of a job."""

import io
import logging
from typing import Any

import pytest

from iskd.planned_jobs import PlannedJobs, short_reason

CHANGED = (
    "Params have changed since last execution: Union of exclusive params before and now across "
    "all output:"
)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Missing output files: a.json, b.json", "output missing"),
        ("Missing output files: a; Input files updated by another job: b, c", "output missing"),
        ("Input files updated by another job: b, c", "input made anew"),
        (
            "Updated input files: b; Params have changed since last execution: x:\n  1; 2",
            "parameters changed, input changed",
        ),
        (f"{CHANGED} before: '8bf24ca57f22f999' now: 'ce74981b3255773b' ", "code changed"),
        (f"{CHANGED} before: 3 now: 4", "parameters changed"),
        (f"{CHANGED} before: 3, '8bf24ca57f22f999' now: 'ce74981b3255773b'", "parameters changed"),
        ("Forced execution", "forced"),
        ("Finished (was: Missing output files: a)", "output missing"),
        # A file's name is no reason.
        ("Updated input files: Forced execution/a", "input changed"),
        ("Something new: a, b", "something new"),
    ],
)
def test_a_reason_is_said_in_a_few_words(reason: str, words: str) -> None:
    assert short_reason(reason) == words


def event(name: str | None, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, fields.pop("msg", ""), (), None)
    record.__dict__.update(event=name, **fields)
    return record


def test_jobs_are_lines_and_are_counted_once() -> None:
    output = io.StringIO()
    planned = PlannedJobs(output)
    assert not planned.filter(event("run_info", stats={"total": 1}))
    told = {"rule_name": "evaluate", "wildcards": {"model": "m" * 90, "task": "cbt"}}
    assert not planned.filter(event("job_info", reason="Missing output files: a", **told))
    assert not planned.filter(event("shellcmd"))
    assert planned.filter(event("run_info", stats={"total": 1}))
    assert not planned.filter(event(None, msg="Reasons:\n    ..."))
    assert planned.filter(event(None, msg="Nothing to be done"))
    line, _, more = output.getvalue().splitlines()
    assert line.startswith("evaluate mmm")
    assert line.endswith("m/cbt  output missing")
    assert len(line) == 80
    assert "--verbose" in more
