"""Make one artifact again, from its recorded inputs and by the code it was made by, and compare.

In a clean folder that holds the code and the declared inputs alone, in a clean environment, and
without a network where that can be had: what was not declared is not there.
"""

import random
import tempfile
from enum import StrEnum
from pathlib import Path

from iskd.audit.clean_folder import RefusedError, lay_out_code, lay_out_inputs
from iskd.audit.code import UnavailableError
from iskd.audit.folder import StudyFolder, recorded_config
from iskd.audit.isolation import CONFIG, has_resumed, reason_of, run_killed, run_rule
from iskd.audit.verdict import Reproduced, Reproduction, judge
from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST
from iskd.provenance.fingerprint import SCRIPTS
from iskd.provenance.statement import Statement

_DOWNLOADS = "download_"
# Measured times are never the same twice.
_CLOCKED = ("measure_efficiency",)


class Variant(StrEnum):
    """How an artifact may be made again on purpose in another way than it was."""

    RESUME = "resume"
    """Killed once something was saved, and called again: it must go on to the same bits."""
    SCALAR = "scalar"
    """Without the processor's vector instructions: how far other processors may be off."""


def reproduce(
    study: Path,
    place: str,
    *,
    tolerance: float = 0.0,
    config: Path | None = None,
    variant: Variant | None = None,
) -> Reproduction:
    """Make one artifact again.

    Args:
        study: the study's folder of results.
        place: the artifact's folder below it.
        tolerance: largest relative distance of weights and numbers that counts as the same; other
            processors and thread counts give other last bits.
        config: the study's config file; left out, the config that was recorded.
        variant: make it in another way on purpose.

    Raises:
        UserError: the study has no such artifact, or does not tell its config.
    """
    folder = StudyFolder(study)
    found = folder.artifacts.get(place)
    if found is None or found.statement is None:
        raise UserError(f"{study / place}: no artifact with a statement lies there")
    done = Reproduction(place, found.digest, Reproduced.REFUSED, tolerance)
    try:
        _refuse_what_cannot_be_the_same(found.statement.request["rule"])
        try:
            text = config.read_text(encoding="utf-8") if config else recorded_config(study)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{config}: {error}; name the study's config") from error
        with tempfile.TemporaryDirectory(prefix="iskd-reproduce-") as scratch:
            lay_out_code(found, Path(scratch), done)
            lay_out_inputs(folder, found.statement, Path(scratch))
            Path(scratch, CONFIG).write_text(text, encoding="utf-8")
            _make(folder, found.statement, Path(scratch), variant, done)
    except (RefusedError, UnavailableError) as refusal:
        done.why = str(refusal)
    return done


def _refuse_what_cannot_be_the_same(rule: str) -> None:
    if not (SCRIPTS / f"{rule}.py").is_file() or not rule.isidentifier():
        raise RefusedError(f"this checkout has no rule {rule!r}")
    if rule.startswith(_DOWNLOADS):
        raise RefusedError(
            f"{rule} fetches from a network; what it fetched is pinned by commit and digest"
        )
    if rule in _CLOCKED:
        raise RefusedError(f"{rule} measures times, which are not the same twice")


def _make(
    folder: StudyFolder,
    statement: Statement,
    top: Path,
    variant: Variant | None,
    done: Reproduction,
) -> None:
    """Make the artifact in a folder that has all it needs, and judge it."""
    rule, target = statement.request["rule"], f"results/{folder.name}/{done.place}/{MANIFEST}"
    if variant is Variant.RESUME and not run_killed(top, target, rule):
        raise RefusedError(f"{rule} was done before it had saved anything to go on from")
    ran = run_rule(top, target, rule, _SCALAR if variant is Variant.SCALAR else {})
    again = top / "results" / folder.name / done.place
    if not (again / MANIFEST).is_file():
        done.verdict, done.why = Reproduced.FAILED, reason_of(ran)
    elif variant is Variant.RESUME and not has_resumed(again):
        done.verdict, done.why = Reproduced.FAILED, "called again, it began anew"
    else:
        judge(folder.path / done.place, statement, again, done)
    if variant is not None:
        done.notes.append(_VARIANT_NOTES[variant])


# Settings that make each library that computes keep to what every processor of a kind has.
_SCALAR = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
_VARIANT_NOTES = {
    Variant.RESUME: "it was killed in its middle, and called again",
    Variant.SCALAR: "made without vector instructions: other processors may be as far off",
}


def choose(study: Path, number: int, seed: int) -> list[str]:
    """Draw artifacts for a spot check: of each rule as evenly as the number allows.

    Args:
        study: the study's folder of results.
        number: how many.
        seed: of the draw.
    """
    by_rule: dict[str, list[str]] = {}
    draw, chosen = random.Random(seed), list[str]()
    for place, found in StudyFolder(study).artifacts.items():
        if found.statement is not None:
            by_rule.setdefault(found.statement.request["rule"], []).append(place)
    for places in by_rule.values():
        draw.shuffle(places)
    rules = sorted(by_rule)
    draw.shuffle(rules)
    while len(chosen) < number and any(by_rule.values()):
        for rule in rules:
            if by_rule[rule] and len(chosen) < number:
                chosen.append(by_rule[rule].pop())
    return chosen
