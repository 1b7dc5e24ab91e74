"""What a dry run shows: a line per job, with the reason why it would run."""

import logging
import re
import sys
from typing import TextIO

from iskd.progress import job_name
from iskd.study_progress import WIDTH, cut, is_routine

# Beginnings of Snakemake's reasons, and what is said of them, in the order of their weight.
_REASONS = (
    ("Params have changed", "parameters changed"),
    ("Code has changed", "code changed"),
    ("Software environment definition has changed", "environment changed"),
    ("Set of input files has changed", "other inputs"),
    ("Updated input files", "input changed"),
    ("Incomplete output files", "output incomplete"),
    ("Missing output files", "output missing"),
    ("Forced execution", "forced"),
)
# Said only where nothing else is.
_MADE_ANEW = ("Input files updated by another job", "input made anew")
# The code of a rule is a parameter of it, of 16 digits (`iskd.provenance.fingerprint`).
_CODE_ALONE = re.compile(r"before: '[0-9a-f]{16}' now: '[0-9a-f]{16}' *(?:$|;)")


class PlannedJobs(logging.Filter):
    """Print a line for each job of a dry run, in the place of what Snakemake says of it.

    Args:
        say: where to.
    """

    def __init__(self, say: TextIO = sys.stderr) -> None:
        super().__init__()
        self.say = say
        self._counted = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether Snakemake shall print an event itself."""
        event = str(getattr(record, "event", None))
        if event == "job_info":
            told = record.__dict__
            name = job_name(told["rule_name"], told.get("wildcards") or {})
            why = short_reason(told.get("reason") or "")
            room = WIDTH - len(why) - 2
            print(f"{cut(name, room).ljust(room)}  {why}", file=self.say, flush=True)
            return False
        if event == "run_info":  # told before the jobs and after them
            first, self._counted = not self._counted, True
            return not first
        if str(record.msg or "").startswith("Reasons:"):
            words = "Files, parameters and resources of each job: add --verbose"
            print(f"\n{words}", file=self.say, flush=True)
            return False
        return not is_routine(record)


def short_reason(reason: str) -> str:
    """Say in a few words why a job would run; its files are left out.

    Args:
        reason: as Snakemake gives it.
    """
    if _CODE_ALONE.search(reason):
        reason = reason.replace("Params have changed", "Code has changed")
    found = [words for start, words in _REASONS if re.search(rf"(?:^|; |\(was: ){start}", reason)]
    if not found and _MADE_ANEW[0] in reason:
        found = [_MADE_ANEW[1]]
    return ", ".join(found) or reason.split(":", maxsplit=1)[0].lower()
