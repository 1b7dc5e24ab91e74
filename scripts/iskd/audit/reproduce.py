"""Make one artifact again, from its recorded inputs and by the code it was made by, and compare.

In a clean folder that holds the code and the declared inputs alone, in a clean environment, and
without a network where that can be had: what was not declared is not there.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from iskd.audit.code import UnavailableError, check_out, copy_code
from iskd.audit.compare import Distance, compare_files
from iskd.audit.folder import Found, StudyFolder, recorded_config
from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, read_manifest
from iskd.provenance.environment import LOCK, environment, tree_digest, versions
from iskd.provenance.fingerprint import SCRIPTS, code_fingerprint
from iskd.provenance.ledger import PREFIX, STATE_SECONDS
from iskd.provenance.statement import LOCK_FILE, STATEMENT_TYPE, Statement, canonical_json

# Of the caller's environment, what a program needs to run at all.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
_DOWNLOADS = "download_"
_CONFIG = "recorded.yaml"
# What a clock says is never said twice.
_CLOCKED = ("measure_efficiency",)


class Reproduced(StrEnum):
    """How an artifact that was made again compares."""

    BITWISE = "BITWISE"
    WEIGHTS_EQUAL = "WEIGHTS_EQUAL"
    WITHIN_TOLERANCE = "WITHIN_TOLERANCE"
    DIFFERENT = "DIFFERENT"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


class Twin(StrEnum):
    """How an artifact may be made again on purpose in another way than it was."""

    RESUME = "resume"
    """Killed once something was saved, and called again: it must go on to the same bits."""
    SCALAR = "scalar"
    """Without the processor's vector instructions: how far other processors may be off."""


# What each library that computes is told, to keep to what every processor of a kind has.
_SCALAR = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
_POLL_SECONDS = 0.02


@dataclass
class Reproduction:
    """What came of making an artifact again.

    Attributes:
        place: the artifact's folder below the study's.
        statement: sha256 of its manifest.
        verdict: how it compares.
        why: why it was refused or failed.
        tolerance: largest relative distance that passes, stated before the run.
        distances: of the files that have other bytes.
        notes: what was different about this run's surroundings.
    """

    place: str
    statement: str
    verdict: Reproduced
    tolerance: float
    why: str = ""
    distances: list[Distance] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Give the verdict for people."""
        lines = [f"{self.verdict} {self.place}{': ' if self.why else ''}{self.why}"]
        lines += [f"  {distance}" for distance in self.distances]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def as_statement(self) -> dict[str, Any]:
        """Give the verdict for machines: a statement about the artifact's statement.

        It is evidence for whoever trusts its author: made again on this machine, with that result.
        """
        told = {**vars(self), "distances": [d.as_dict() for d in self.distances]}
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": f"{self.place}/{MANIFEST}", "digest": {"sha256": self.statement}}],
            "predicateType": "urn:iskd:reproduction:v1",
            "predicate": told | {"made_in": environment()},
        }


def reproduce(
    study: Path,
    place: str,
    *,
    tolerance: float = 0.0,
    config: Path | None = None,
    twin: Twin | None = None,
) -> Reproduction:
    """Make one artifact again.

    Args:
        study: the study's folder of results.
        place: the artifact's folder below it.
        tolerance: largest relative distance of weights and numbers that counts as the same; other
            processors and thread counts give other last bits.
        config: the study's config file; left out, the config that was recorded.
        twin: make it in another way on purpose.

    Raises:
        UserError: the study has no such artifact, or does not tell its config.
    """
    folder = StudyFolder(study)
    found = folder.artifacts.get(place)
    if found is None or found.statement is None:
        raise UserError(f"{study / place}: no artifact with a statement lies there")
    done = Reproduction(place, found.digest, Reproduced.REFUSED, tolerance)
    try:
        _refuse_what_cannot_be_the_same(found.statement.asked["rule"])
        try:
            text = config.read_text(encoding="utf-8") if config else recorded_config(study)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{config}: {error}; name the study's config") from error
        with tempfile.TemporaryDirectory(prefix="iskd-reproduce-") as scratch:
            _lay_out_code(found, Path(scratch), done)
            _lay_out_inputs(folder, found.statement, Path(scratch))
            Path(scratch, _CONFIG).write_text(text, encoding="utf-8")
            _make(folder, found.statement, Path(scratch), twin, done)
    except (_RefusedError, UnavailableError) as refusal:
        done.why = str(refusal)
    return done


def _refuse_what_cannot_be_the_same(rule: str) -> None:
    if not (SCRIPTS / f"{rule}.py").is_file() or not rule.isidentifier():
        raise _RefusedError(f"this checkout has no rule {rule!r}")
    if rule.startswith(_DOWNLOADS):
        raise _RefusedError(
            f"{rule} fetches from a network; what it fetched is pinned by commit and digest"
        )
    if rule in _CLOCKED:
        raise _RefusedError(f"{rule} measures times, which are not the same twice")


def _make(
    folder: StudyFolder, statement: Statement, top: Path, twin: Twin | None, done: Reproduction
) -> None:
    """Make the artifact in a folder that has all it needs, and judge it."""
    rule, target = statement.asked["rule"], f"results/{folder.name}/{done.place}/{MANIFEST}"
    if twin is Twin.RESUME and not _killed(top, target, rule):
        raise _RefusedError(f"{rule} was done before it had saved anything to go on from")
    ran = _run(top, target, rule, _SCALAR if twin is Twin.SCALAR else {})
    again = top / "results" / folder.name / done.place
    if not (again / MANIFEST).is_file():
        done.verdict, done.why = Reproduced.FAILED, _reason(ran)
    elif twin is Twin.RESUME and not _has_resumed(again):
        done.verdict, done.why = Reproduced.FAILED, "called again, it began anew"
    else:
        _judge(folder.path / done.place, statement, again, done)
    if twin is not None:
        done.notes.append(_TWINS[twin])


_TWINS = {
    Twin.RESUME: "it was killed in its middle, and called again",
    Twin.SCALAR: "made without vector instructions: other processors may be as far off",
}


class _RefusedError(Exception):
    """Why an artifact cannot be made again here."""


def _lay_out_code(found: Found, top: Path, done: Reproduction) -> None:
    """Put the code that made an artifact into a folder: this checkout's, or a commit's."""
    assert found.statement is not None  # noqa: S101 - the caller has looked
    asked, run = found.statement.asked, found.run or {}
    if code_fingerprint(asked["rule"]) == asked["code"] and file_digest(LOCK) == asked["lock"]:
        copy_code(top)
        if run.get("code") != tree_digest():
            done.notes.append("this checkout is another; what the rule runs is the same in it")
    else:
        check_out(run, top, lambda code: _fingerprint_in(code, asked["rule"]) == asked["code"])
        if file_digest(top / LOCK_FILE) != asked["lock"]:
            raise _RefusedError("it was made with another lock of packages than its code has")
    if file_digest(LOCK) != asked["lock"]:
        done.notes.append("the packages here are another lock's than it was made with")
    for package, version in versions().items():
        told = (run.get("versions") or {}).get(package)
        if told != version:
            done.notes.append(f"{package} {version} here, {told} then")


def _fingerprint_in(top: Path, rule: str) -> str:
    """Work out a rule's digest of code by the library of another checkout."""
    program = "import sys; from iskd.provenance.fingerprint import code_fingerprint as digest; "
    done = subprocess.run(  # noqa: S603 - the library of a commit that this repository has
        [sys.executable, "-c", f"{program}print(digest(sys.argv[1]))", rule],
        env=_environment(top),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _lay_out_inputs(folder: StudyFolder, statement: Statement, top: Path) -> None:
    """Copy the declared inputs, whole artifacts as they were, after checking their bytes."""
    for name, about in statement.asked["inputs"].items():
        below = folder.below(name)
        if below is None:
            raise _RefusedError(
                f"it was made from the local file {name}, which is not in the study"
            )
        source = folder.path / below
        if not source.is_file() or file_digest(source) != about["sha256"]:
            raise _RefusedError(f"its input {name} is not here as it was")
        target = top / "results" / folder.name / below
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if source.name == MANIFEST:
            for file, said in read_manifest(source).files.items():
                part = source.parent / file
                if not part.is_file() or file_digest(part) != said.sha256:
                    raise _RefusedError(f"{part.name} of its input {name} is not here as it was")
                copy = target.parent / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, copy)
            # A report of a run is read for its times alone, where it is.
            if (source.parent / RUN).is_file():
                shutil.copyfile(source.parent / RUN, target.parent / RUN)


def _run(
    top: Path, target: str, rule: str, variables: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own workflow, a checked place
        _command(target, rule),
        cwd=top,
        env={**_environment(top), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def _command(target: str, rule: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", target, "--configfile", _CONFIG]
    command += ["--cores", "1", "--allowed-rules", rule, "--force", "--nolock"]
    return [*no_network(), *command, "--rerun-incomplete"]


def _killed(top: Path, target: str, rule: str) -> bool:
    """Run a job until it has saved something, and kill it and Snakemake; False if it was done."""
    run = subprocess.Popen(  # noqa: S603 - our own workflow, a checked place
        _command(target, rule),
        cwd=top,
        env=_environment(top) | {STATE_SECONDS: "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while run.poll() is None:
        if any(top.joinpath("results").rglob(f"{PREFIX}*.json")):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _has_resumed(artifact: Path) -> bool:
    told = json.loads((artifact / RUN).read_text(encoding="utf-8"))
    return bool(told["resumed_after_steps"] or told["resumed_after_texts"])


def _environment(top: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # The local files of a study are not here, and no job that is made again reads one.
    alone = {"ISKD_PLAN_ONLY": "1"}
    return kept | alone | {"PYTHONPATH": str(top / "scripts"), "PYTHONHASHSEED": "0"}


def no_network() -> Sequence[str]:
    """Give the command that runs another one without any network; empty where there is none."""
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        try:
            done = subprocess.run([*command, "true"], capture_output=True, check=False)  # noqa: S603
        except FileNotFoundError:
            return []
        if done.returncode == 0:
            return command
    return []


def _reason(ran: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    told = [line for line in lines if " failed: " in line or "Exception" in line or "rror" in line]
    return (told or lines or ["snakemake said nothing"])[-1 if not told else 0][:300]


def _judge(original: Path, statement: Statement, again: Path, done: Reproduction) -> None:
    """Compare what was made with what lies there."""
    made = read_manifest(again)
    if made.asked != json.loads(canonical_json(statement.asked)):
        keys = [key for key in made.asked if made.asked[key] != statement.asked[key]]
        done.verdict = Reproduced.DIFFERENT
        done.why = f"the recorded config asks for other {', '.join(keys)} than its statement tells"
        return
    other = sorted(
        name
        for name in {*made.files, *statement.files}
        if made.files.get(name) != statement.files.get(name)
    )
    if not other:
        done.verdict = Reproduced.BITWISE
        return
    if all(_same_tensors(name, made, statement) for name in other):
        done.verdict = Reproduced.WEIGHTS_EQUAL
        return
    done.distances = [compare_files(original / name, again / name) for name in other]
    within = all(distance.relative <= done.tolerance for distance in done.distances)
    done.verdict = Reproduced.WITHIN_TOLERANCE if within else Reproduced.DIFFERENT


def _same_tensors(name: str, made: Statement, told: Statement) -> bool:
    files = made.files.get(name), told.files.get(name)
    tensors = [None if file is None else file.tensors for file in files]
    return tensors[0] is not None and tensors[0] == tensors[1]


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
            by_rule.setdefault(found.statement.asked["rule"], []).append(place)
    for places in by_rule.values():
        draw.shuffle(places)
    rules = sorted(by_rule)
    draw.shuffle(rules)
    while len(chosen) < number and any(by_rule.values()):
        for rule in rules:
            if by_rule[rule] and len(chosen) < number:
                chosen.append(by_rule[rule].pop())
    return chosen
