"""A reproducibility checklist, filled in from what a study's statements and reports say.

The questions are those of the ACL's responsible NLP checklist and of NeurIPS's paper checklist that
a run can answer, by their numbers and in our words; the others are left to the authors by name.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from iskd.audit.folder import CODE, CONFIG, METRICS, Found, StudyFolder, weights_in
from iskd.audit.rule_kinds import DATA, EVALUATIONS, TRAININGS
from iskd.evaluation.measurements import device_hours
from iskd.provenance.artifact import MANIFEST
from iskd.provenance.statement import LOCK_FILE

_ORIGIN = ("model", "dataset", "folder", "source", "revision")
_AUTHORS = (
    "claims and limitations (ACL A1, A2; NeurIPS 1, 2), theory (NeurIPS 3), ethics, impact and "
    "safeguards (NeurIPS 9 to 11), licences of the data and models named above and whether this "
    "use is meant by them (ACL B1 to B5; NeurIPS 12), people asked or paid (ACL D; NeurIPS 14, "
    "15), assistants used for writing (ACL E; NeurIPS 16)"
)


def checklist(folder: StudyFolder, config: str, licence: str) -> str:
    """Fill in the checklist.

    Args:
        folder: the study.
        config: the study's config, as YAML.
        licence: of the results.

    Returns:
        Markdown.
    """
    recorded = [
        f for f in folder.artifacts.values() if f.statement is not None and f.run is not None
    ]
    recorded.sort(key=lambda found: found.place)
    settings: dict[str, Any] = yaml.safe_load(config)
    parts = [
        f"# Reproducibility checklist: {folder.name}",
        "Filled in by `iskd export` from the statements of the study's "
        f"{len(recorded)} artifacts and the reports of the jobs that made them. "
        "Numbers in brackets are those of the questions in the ACL's responsible NLP checklist and "
        "in NeurIPS's paper checklist.",
        *_section("Can it be made again? (NeurIPS 4, 5)", _again(folder, recorded)),
        *_section("Data, splits and their sizes (ACL B6; NeurIPS 6)", _data(folder, recorded)),
        *_section("Models and their sizes (ACL C1)", _models(recorded)),
        *_section("Settings, and how they were chosen (ACL C2; NeurIPS 6)", _settings(settings)),
        *_section("Seeds, intervals, several runs (ACL C3; NeurIPS 7)", _statistics(settings)),
        *_section("Compute (ACL C1; NeurIPS 8)", _compute(recorded)),
        *_section("Packages (ACL C4)", _packages(recorded)),
        *_section("New assets and their licence (NeurIPS 13)", [f"Results: {licence}"]),
        *_section("Left to the authors", [f"What no run can tell: {_AUTHORS}."]),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, lines: Iterable[str]) -> tuple[str, str]:
    return f"## {title}", "\n".join(lines)


def _again(folder: StudyFolder, recorded: list[Found]) -> Iterator[str]:
    commits = Counter((found.run or {}).get("git", {}).get("commit") for found in recorded)
    unknown = commits.pop(None, 0)
    changed = sum(bool((found.run or {}).get("git", {}).get("modified")) for found in recorded)
    metrics = folder.artifacts.get(METRICS)
    if commits:
        yield "- Commands, from a clone of the workflow at the commit named here:"
        commands = [
            "make .venv/.installed && . .venv/bin/activate",
            f"snakemake --cores all --configfile results/{folder.name}/{CONFIG}",
            f"iskd verify results/{folder.name}",
        ]
    else:
        yield f"- Commands, from `{CODE}/`:"
        commands = [
            "python3 -m venv .venv && . .venv/bin/activate",
            f"pip install -r {LOCK_FILE}",
            "snakemake --cores all",
            f"PYTHONPATH=scripts python -m iskd.cli verify results/{folder.name}",
        ]
    yield from ("", "  ```", *(f"  {command}" for command in commands), "  ```")
    yield ""
    for commit, number in sorted(commits.items()):
        yield f"- Commit {commit}: {number} artifacts"
    if unknown:
        yield f"- No commit: {unknown} artifacts, made outside of a git checkout"
    if changed:
        yield f"- {changed} of them by code that differs from its commit; `code/` has it as it was"
    if metrics is not None:
        yield f"- Root digest (sha256 of {METRICS}/{MANIFEST}): `{metrics.digest}`"
    yield "- The code lies in `code/`, the config in `code/config/config.yaml`"
    yield (
        "- The same bytes are promised for the same lock, kind of processor and number of "
        "processes; elsewhere see `iskd reproduce --tolerance`"
    )


def _data(folder: StudyFolder, recorded: list[Found]) -> Iterator[str]:
    yield "| Artifact | From | Amounts |"
    yield "|---|---|---|"
    for found in recorded:
        statement = found.statement
        if statement is None or not statement.request["rule"].startswith(DATA):
            continue
        parameters = statement.request["parameters"]
        origin = [str(parameters[key]) for key in _ORIGIN if parameters.get(key)]
        inputs = (folder.source(name) or name for name in statement.request["inputs"])
        source = " ".join(origin) or ", ".join(dict.fromkeys(inputs))
        seed = statement.request["seed"]
        source = source or "generated by the workflow"
        seeded = f", seed {seed}" if seed is not None else ""
        yield f"| {found.place} | {source}{seeded} | {_amounts(found)} |"


def _amounts(found: Found) -> str:
    summary = found.statement.summary if found.statement is not None else {}
    return ", ".join(
        f"{value:,} {name.replace('_', ' ')}" if isinstance(value, int) else f"{name}: {value}"
        for name, value in sorted(summary.items())
    )


def _models(recorded: list[Found]) -> Iterator[str]:
    yield "| Checkpoint | Parameters | Weights, bytes |"
    yield "|---|---|---|"
    for found in recorded:
        weights = weights_in(found.files)
        if found.statement is not None and weights:
            number = found.statement.summary.get("parameters")
            number = f"{number:,}" if isinstance(number, int) else "not told"
            yield f"| {found.place} | {number} | {sum(found.files[name] for name in weights):,} |"


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    yield "Every setting stands in `code/config/config.yaml`, and in the statement of each artifact"
    yield "that it had a part in. The workflow searches no settings; an order of blocks that is"
    yield "measured is measured on training text. Those of the trainings:"
    yield ""
    for name, teacher in settings.get("teachers", {}).items():
        own = {key: teacher.get(key) for key in ("order", "training")}
        yield f"- teacher {name}: {_words(own)}"
    for name, arm in settings.get("arms", {}).items():
        own = {key: arm.get(key) for key in ("method", "order", "objective", "reference")}
        yield f"- arm {name}: {_words(own)}"


def _words(settings: dict[str, Any]) -> str:
    """Say settings in a line; what is null, or a list's brackets, is left out."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, dict):
            parts.append(f"{key} ({_words(value)})")
        elif value is not None:
            parts.append(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return ", ".join(parts).replace("_", " ")


def _statistics(settings: dict[str, Any]) -> Iterator[str]:
    seeds = settings.get("seeds") or []
    yield f"- Seeds of the arms: {', '.join(map(str, seeds))}; all of them are reported"
    if len(seeds) < 2:
        yield "- One seed: nothing here tells how much another training would differ"
    else:
        yield "- Tables show the mean over seeds, and the sample's standard deviation as spread"
    yield (
        "- Intervals are 95 %: Wilson's for accuracies, Student's for means, over items or the "
        "sources that items share (docs/evaluation.md)"
    )
    yield (
        "- Differences to the teacher are paired by item: a bootstrap by source, and McNemar's "
        "test for accuracies"
    )
    yield "- The answers to every item are kept in `evaluate/.../samples.jsonl.gz`"


def _compute(recorded: list[Found]) -> Iterator[str]:
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    machines: Counter[str] = Counter()
    for found in recorded:
        if found.statement is None or found.run is None:
            continue
        rule, run = found.statement.request["rule"], found.run
        kind = "training" if rule.startswith(TRAININGS) else "all else"
        kinds["evaluation" if rule.startswith(EVALUATIONS) else kind].append(run)
        host = run.get("host") or {}
        about = (run.get("device"), host.get("machine"), host.get("vectors"))
        machines[", ".join(str(part) for part in about if part)] += 1
    yield "| Work | Jobs | Device hours | Peak memory, MB | Peak GPU memory, MB | Energy, kJ |"
    yield "|---|---|---|---|---|---|"
    for kind, runs in sorted(kinds.items()):
        memory, card = (_largest(runs, f"peak_{where}memory_mb") for where in ("", "gpu_"))
        joules = [run.get("energy_joules_in_all") for run in runs]
        known = [number for number in joules if number is not None]
        energy = f"{sum(known) / 1000:.1f}" if len(known) == len(joules) else "not told"
        hours = f"{device_hours(runs):.3f}"
        yield f"| {kind} | {len(runs)} | {hours} | {memory} | {card} | {energy} |"
    yield ""
    yield "A device is a GPU, or a core where a job has computed on none. All attempts count,"
    yield "killed ones too; runs that are not in this folder do not."
    yield ""
    for machine, number in sorted(machines.items()):
        yield f"- {number} jobs on: {machine}"


def _largest(runs: list[dict[str, Any]], key: str) -> str:
    known = [run[key] for run in runs if run.get(key) is not None]
    return f"{max(known):,.0f}" if known else "none"


def _packages(recorded: list[Found]) -> Iterator[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for artifact in recorded:
        for package, version in ((artifact.run or {}).get("versions") or {}).items():
            found[package].add(version)
    yield f"All versions stand in `code/{LOCK_FILE}`. Those that numbers depend on most:"
    yield ""
    for package, versions in sorted(found.items()):
        yield f"- {package} {' and '.join(sorted(versions))}"
