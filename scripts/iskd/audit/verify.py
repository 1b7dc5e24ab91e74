"""Verify a study: are these its bytes, made from one another, by this code, config and seed?"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from iskd.audit import answers, checks, export, rederive, signature
from iskd.audit.findings import Code, Finding
from iskd.audit.folder import METRICS, StudyFolder, recorded_config
from iskd.audit.hashing import Memory, digest_files
from iskd.audit.planned import Planned, Planning
from iskd.config.model_defaults import fill_in_from
from iskd.errors import UserError
from iskd.provenance.artifact import file_digest
from iskd.provenance.environment import CHECKOUT, LOCK, git
from iskd.provenance.statement import canonical_json

At = Literal["recorded", "checkout"]
# What a plan of another commit may find in a study that is as it was made.
_PLANNED = {Code.STALE_CONFIG, Code.WRONG_FILES, Code.WRONG_INPUT_SET, Code.MISSING_ARTIFACT}


@dataclass
class Verdict:
    """What a verification came to.

    Attributes:
        study: the study's name.
        at: whether its history was checked, or also that this checkout would make it so.
        artifacts: how many were looked at.
        size: of the files whose bytes were read or trusted, in bytes.
        root: digest of the statement of metrics.csv, which names all before it by digest.
        findings: what is not as it should be, sorted by place.
        notes: what could not be checked, and why; no findings.
    """

    study: str
    at: At
    artifacts: int = 0
    size: int = 0
    root: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where all is well, 1 where something was found."""
        return 1 if self.findings else 0

    def as_json(self) -> str:
        """Give the verdict for machines."""
        findings = [{"code": f.code, "place": f.place, "what": f.what} for f in self.findings]
        values = vars(self) | {"findings": findings, "verdict": "FAIL" if findings else "PASS"}
        return canonical_json(values)

    def as_text(self) -> str:
        """Give the verdict for people."""
        lines = [str(finding) for finding in self.findings]
        lines += [f"not checked: {note}" for note in self.notes]
        counts = Counter(finding.code for finding in self.findings)
        lines += [f"  {code}: {code.explanation} ({n})" for code, n in sorted(counts.items())]
        lines.append(
            f"{self.study}: {self.artifacts} artifacts, {self.size / 1e6:,.1f} MB, root {self.root}"
        )
        number = len(self.findings)
        verdict = f"{number} finding{'s' * (number > 1)}" if number else "all is well"
        lines.append(f"{'FAIL' if self.findings else 'PASS'} (--at {self.at}): {verdict}")
        return "\n".join(lines) + "\n"


def _config_here(recorded: str) -> Path | None:
    """Find the one file of this checkout's ``config/`` that is about the study."""
    study = yaml.safe_load(recorded)["study"]
    files = sorted((CHECKOUT / "config").glob("*.yaml"))
    same = [file for file in files if yaml.safe_load(file.read_bytes()).get("study") == study]
    return same[0] if len(same) == 1 else None


def _completed(config: Path, path: Path) -> Path | str:
    """Fill in what a config leaves to its models, from what was recorded: they are not at hand."""
    try:
        raw = yaml.safe_load(config.read_bytes())
        recorded = yaml.safe_load(recorded_config(path))
    except (OSError, ValueError, yaml.YAMLError, UserError):
        return config  # what is wrong with it, the plan will tell
    if not isinstance(raw, dict):
        return config
    filled = fill_in_from(raw, recorded)
    return config if filled == raw else yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)


def verify(
    path: Path,
    *,
    at: At = "recorded",
    config: Path | None = None,
    root: str | None = None,
    signed_by: Path | None = None,
    memory: Path | None = None,
    derive: bool = True,
) -> Verdict:
    """Verify a study's folder of results. Nothing is written but the memory, if one is named.

    Args:
        path: ``results/<study>``.
        at: ``recorded``: the history is consistent; ``checkout``: this checkout's code, packages
            and config would still make it.
        config: the study's config file; left out, the file of the checkout's ``config/`` that is
            about this study (at ``checkout``), or else the config that was recorded.
        root: the root digest that the study shall have.
        signed_by: a file with the public key (PEM) of whom the study shall be signed by.
        memory: a file with digests of an earlier call, trusted where size, time of change and
            inode of a file are as they were then.
        derive: make figures, tables and texts again and compare the bytes, which takes seconds.

    Raises:
        UserError: the study cannot be verified: there is none, its config cannot be planned, or
            the key cannot be read.
    """
    recorded = recorded_config(path) if config is None else None
    if recorded is not None and at == "checkout":
        config = _config_here(recorded)
    planning = Planning(recorded or "" if config is None else _completed(config, path))
    folder = StudyFolder(path)
    remembered = None if memory is None else Memory(memory)
    # Planned meanwhile, by another process.
    wanted = [f for f in checks.to_digest(folder) if f.is_file()]
    digests = digest_files(wanted, remembered)
    plan = planning.finish()
    verdict = Verdict(folder.name, at, artifacts=len(folder.artifacts))
    if at == "checkout" and config is None:
        verdict.notes.append(
            "whether the config is still the same: no file in config/ names this study; give yours "
            "with --configfile"
        )
    verdict.size = sum(file.stat().st_size for file in wanted)
    metrics = folder.artifacts.get(METRICS)
    verdict.root = metrics.digest if metrics is not None else ""
    if remembered is not None and remembered.trusted:
        verdict.notes.append(
            f"the bytes of {remembered.trusted} of {len(wanted)} files: trusted, since their size, "
            f"time of change and inode are those of the last call"
        )
    to_remake = _to_remake(folder, plan, verdict) if derive else []
    with rederive.remaking(folder, plan, to_remake) as remade:
        found = set(_findings(folder, plan, digests, verdict))
        found.update(remade)
    if not derive:
        verdict.notes.append("whether figures, tables and texts follow from the numbers: not asked")
    found.update(export.check(folder))
    if root is not None and root != verdict.root:
        found.add(Finding(METRICS, Code.ROOT, f"{verdict.root} where {root} was expected"))
    if signed_by is not None:
        found.update(signature.check(folder, signed_by))
    elif signers := signature.signers(folder):
        verdict.notes.append(
            f"the signature of {', '.join(signers)}: give the public key with --signed-by"
        )
    verdict.findings = sorted(found)
    if _PLANNED & {finding.code for finding in found}:
        verdict.notes += _other_commits(folder)
    return verdict


def _other_commits(folder: StudyFolder) -> Iterator[str]:
    """Say by which other commit a study was made, whose plan may ask for other things."""
    here = git("rev-parse", "HEAD")
    runs = (found.run or {} for found in folder.artifacts.values())
    commits = {(run.get("git") or {}).get("commit") for run in runs} - {here, None}
    for commit in sorted(map(str, commits)):
        yield (
            f"by the plan of commit {commit[:12]}, which made artifacts here; this checkout is at "
            f"{str(here)[:12]}, and may ask for other parameters and files. To verify with that "
            f"one: git worktree add ../at-{commit[:12]} {commit[:12]}"
        )


def _findings(
    folder: StudyFolder, plan: Mapping[str, Planned], digests: Mapping[Path, str], verdict: Verdict
) -> Iterator[Finding]:
    yield from checks.presence(folder, plan)
    yield from checks.statements(folder, plan)
    yield from checks.made(folder, plan)
    yield from answers.check(folder, plan)
    yield from checks.contents(folder, plan, digests)
    yield from checks.chain(folder)
    yield from checks.raw_chain(folder, lambda file: digests.get(file) or file_digest(file))
    yield from checks.inputs(folder, plan)
    lock = file_digest(LOCK)
    yield from checks.currency(folder, plan, lock, code=verdict.at == "checkout")
    yield from checks.mixtures(folder)
    yield from rederive.evaluations(folder)
    yield from rederive.models(folder)


def _to_remake(folder: StudyFolder, plan: Mapping[str, Planned], verdict: Verdict) -> list[str]:
    """List the artifacts that this checkout's code can make again, and note the others."""
    lock = file_digest(LOCK)
    chosen: list[str] = []
    other: list[str] = []
    for place, planned in plan.items():
        found = folder.artifacts.get(place)
        if (
            found is None
            or found.statement is None
            or not rederive.is_cheap(planned.request["rule"])
        ):
            continue
        request = found.statement.request
        same = request["code"] == planned.request["code"] and request["lock"] == lock
        (chosen if same and request["rule"] == planned.request["rule"] else other).append(place)
    if other:
        verdict.notes.append(
            f"whether {len(other)} figures, tables and texts follow from the numbers: they were "
            f"made by other code or packages than this checkout's ({other[0]} ...)"
        )
    return chosen
