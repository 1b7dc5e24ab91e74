"""A study as a Provenance Run Crate: what the statements say, for tools that read RO-Crates.

The crate is the study's own folder: models are described where they lie, nothing is copied but the
code. The form is https://w3id.org/ro/wfrun/provenance/0.5.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rocrate.rocrate import ROCrate

from iskd.audit.folder import CODE, CONFIG, PAPER, StudyFolder, weights_in
from iskd.provenance.artifact import MANIFEST, RUN, file_digest
from iskd.provenance.environment import code_files, tree_digest
from iskd.provenance.statement import LOCK_FILE, Statement

TERMS = "https://w3id.org/ro/terms/workflow-run/context"
CRATE_VERSION = "1.1"
_WORKFLOW = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_PROFILES = (
    *(f"https://w3id.org/ro/wfrun/{name}/0.5" for name in ("process", "workflow", "provenance")),
    _WORKFLOW,
)
_LANGUAGE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
_PARAMETER = "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"
_TYPES = {
    **{".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv"},
    **{".pdf": "application/pdf", ".png": "image/png", ".svg": "image/svg+xml"},
    **{".md": "text/markdown", ".tex": "text/x-tex", ".html": "text/html", ".txt": "text/plain"},
    **{".gz": "application/gzip", ".zip": "application/zip", ".yaml": "application/yaml"},
    **{".py": "text/x-python", ".safetensors": "application/octet-stream"},
}
# The inputs of a job that are no files, and their kind.
_KINDS = {"parameters": "Text", "seed": "Integer"}
# What run.json tells of a job's needs, with its unit.
_USAGE = {"seconds": "s", "peak_memory_mb": "MB", "peak_gpu_memory_mb": "MB", "energy_joules": "J"}
_SNAKEFILE = f"{CODE}/workflow/Snakefile"

Entity = dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """An artifact of which statement and report can be read: others are findings."""

    place: str
    statement: Statement
    run: Mapping[str, Any]

    @property
    def request(self) -> Mapping[str, Any]:
        return self.statement.request

    @property
    def rule(self) -> str:
        return str(self.request["rule"])

    @property
    def folder(self) -> str:
        return f"{quote(self.place)}/"

    @property
    def action(self) -> str:
        return f"#{quote(self.place)}"

    @property
    def control(self) -> str:
        return f"{self.action}/control"

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self.run["started"])

    @property
    def finished(self) -> datetime:
        return self.started + timedelta(seconds=round(self.run["seconds"]))

    @property
    def values(self) -> dict[str, Any]:
        parameters = json.dumps(self.request["parameters"], sort_keys=True)
        seed = self.request["seed"]
        return {"parameters": parameters} | ({} if seed is None else {"seed": seed})


def crate(folder: StudyFolder, licence: str) -> Entity:
    """Describe a study.

    Args:
        folder: the study, with its code below ``CODE``.
        licence: of the results, a URL or in words.

    Returns:
        The content of ``ro-crate-metadata.json``.
    """
    found = folder.artifacts.values()
    jobs = [_Job(f.place, f.statement, f.run) for f in found if f.statement and f.run]
    jobs.sort(key=lambda job: (job.started, job.place))
    entities = list(_entities(folder, jobs))
    made = ROCrate(version=CRATE_VERSION)
    made.metadata.extra_contexts.append(TERMS)
    # Not in all versions of that context.
    made.metadata.extra_terms["resourceUsage"] = TERMS.replace("/context", "#resourceUsage")
    version = f"https://w3id.org/ro/crate/{CRATE_VERSION}"
    made.metadata["conformsTo"] = _refer(version, _WORKFLOW)
    for entity in entities:
        # The library takes identity and type out of what it is given.
        made.add_jsonld(dict(entity))
    root = made.root_dataset
    root["name"] = f"{folder.name}: a study of iterative structured knowledge distillation"
    root["description"] = (
        "Blocks of pretrained decoders replaced one by one by compact ones, with baselines, "
        "evaluations, figures and tables. Every folder below with a manifest.json is one artifact."
    )
    root["license"] = licence
    root["datePublished"] = max(job.finished for job in jobs).isoformat()
    root["conformsTo"] = _refer(*_PROFILES)
    root["mainEntity"] = {"@id": _SNAKEFILE}
    actions = ("CreateAction", "OrganizeAction")
    root["mentions"] = _refer(*(e["@id"] for e in entities if e["@type"] in actions))
    # Files of artifacts are parts of their artifact.
    loose = {quote(name) for name in folder.loose}
    parts = [e["@id"] for e in entities if e["@type"] == "Dataset" or e["@id"] in loose]
    root["hasPart"] = _refer(*parts)
    generated: Entity = made.metadata.generate()
    return generated


def _entities(folder: StudyFolder, jobs: list[_Job]) -> Iterator[Entity]:
    by_rule: dict[str, list[_Job]] = {}
    for job in jobs:
        by_rule.setdefault(job.rule, []).append(job)
    yield from _code(folder, by_rule)
    yield from _steps(by_rule)
    for job in jobs:
        yield from _artifact(folder, job)
        yield from _job(folder, job)
    yield from _run(folder, jobs)
    # Copies that jobs read in place of the artifact's own file.
    read = {folder.below(name) for job in jobs for name in job.request["inputs"]}
    yield from (_file(folder, name) for name in sorted(folder.loose) if name in read)
    for profile in _PROFILES:
        name, _, version = profile.rpartition("/")
        title = f"{name.rpartition('/')[2].replace('-', ' ').capitalize()} crate profile"
        yield _entity(profile, "CreativeWork", name=title, version=version)


def _code(folder: StudyFolder, by_rule: Mapping[str, list[_Job]]) -> Iterator[Entity]:
    """Describe the workflow, each rule's script as one of its tools, and the engine."""
    top = folder.path / CODE
    for name in code_files(top):
        about = _file(folder, f"{CODE}/{name}")
        rule = Path(name).stem
        if about["@id"] == _tool(rule) and rule in by_rule:
            about["@type"] = ["File", "SoftwareSourceCode"]
            # One rule's artifacts have one digest of its code, or it is a finding.
            about |= {"name": rule, "version": by_rule[rule][0].request["code"]}
            about["input"] = _refer(*_parameters(rule, by_rule[rule]))
        elif about["@id"] == _SNAKEFILE:
            about["@type"] = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
            about["name"] = "ISKD, one block at a time"
            about["version"] = tree_digest(top)
            about["programmingLanguage"] = {"@id": _LANGUAGE}
            about["hasPart"] = _refer(*map(_tool, by_rule))
            about["step"] = _refer(*map(_step, by_rule))
            about["softwareRequirements"] = {"@id": f"{CODE}/{LOCK_FILE}"}
        yield about
    yield _file(folder, CONFIG) | {"name": "the study's config"}
    version = re.search(r"^snakemake==(\S+)", (top / LOCK_FILE).read_text(encoding="utf-8"), re.M)
    site = "https://snakemake.github.io"
    properties = {"name": "Snakemake", "url": site, "version": version[1] if version else "unknown"}
    yield _entity("#snakemake", "SoftwareApplication", **properties)
    yield _entity(_LANGUAGE, "ComputerLanguage", **properties, identifier={"@id": site})


def _steps(by_rule: Mapping[str, list[_Job]]) -> Iterator[Entity]:
    """Describe each rule as a step, in the order in which they first ran, with its inputs."""
    for position, (rule, jobs) in enumerate(by_rule.items()):
        tool = {"workExample": {"@id": _tool(rule)}, "position": str(position), "name": rule}
        yield _entity(_step(rule), "HowToStep", **tool)
        for parameter in _parameters(rule, jobs):
            name = parameter.rpartition("/")[2]
            yield _entity(
                parameter,
                "FormalParameter",
                additionalType=_KINDS[name],
                name=name,
                conformsTo={"@id": _PARAMETER},
                workExample=_refer(*(f"{job.action}/{name}" for job in jobs if name in job.values)),
            )


def _artifact(folder: StudyFolder, job: _Job) -> Iterator[Entity]:
    """Describe an artifact's folder and files, by the digests that its statement gives."""
    files = [
        _described(f"{job.place}/{name}", produced.sha256, produced.size)
        for name, produced in sorted(job.statement.files.items())
    ]
    files += [_file(folder, f"{job.place}/{name}") for name in (MANIFEST, RUN)]
    parts = _refer(*(about["@id"] for about in files))
    made = f"made by the rule {job.rule}"
    yield _entity(job.folder, "Dataset", name=job.place, description=made, hasPart=parts)
    yield from files


def _job(folder: StudyFolder, job: _Job) -> Iterator[Entity]:
    """Describe the job that made an artifact: its inputs, its request and its usage."""
    sources: list[str] = []
    for name, about in job.request["inputs"].items():
        origin, below = folder.source(name), folder.below(name)
        if origin is not None:
            sources.append(f"{quote(origin)}/")
        elif below is not None:
            sources.append(quote(below))
        else:
            sources.append(f"{job.action}/local/{quote(name)}")
            yield _entity(sources[-1], "CreativeWork", name=name, sha256=about["sha256"])
    for name, value in job.values.items():
        formal = {"@id": f"#tool/{job.rule}/{name}"}
        properties = {"name": name, "value": value, "exampleOfWork": formal}
        yield _entity(f"{job.action}/{name}", "PropertyValue", **properties)
    usage = [name for name in _USAGE if job.run.get(name) is not None]
    for name in usage:
        properties = {"name": name, "value": job.run[name], "unitText": _USAGE[name]}
        properties["propertyID"] = f"urn:iskd:run:{name}"
        yield _entity(f"{job.action}/{name}", "PropertyValue", **properties)
    yield _entity(
        job.action,
        "CreateAction",
        name=f"{job.rule}: {job.place}",
        description=f"The rule {job.rule} made {job.place} from what it declares as its inputs.",
        instrument={"@id": _tool(job.rule)},
        object=_refer(*dict.fromkeys(sources), *(f"{job.action}/{name}" for name in job.values)),
        result={"@id": job.folder},
        resourceUsage=_refer(*(f"{job.action}/{name}" for name in usage)),
        startTime=job.started.isoformat(),
        endTime=job.finished.isoformat(),
        actionStatus="http://schema.org/CompletedActionStatus",
    )
    ran = {"instrument": {"@id": _step(job.rule)}, "object": {"@id": job.action}}
    yield _entity(job.control, "ControlAction", name=f"Snakemake ran {job.rule}", **ran)


def _run(folder: StudyFolder, jobs: list[_Job]) -> Iterator[Entity]:
    """Describe the run of the workflow as a whole: it results in the paper's files and models."""
    times = {
        "startTime": min(job.started for job in jobs).isoformat(),
        "endTime": max(job.finished for job in jobs).isoformat(),
    }
    results = [job.folder for job in jobs if job.place == PAPER or weights_in(job.statement.files)]
    yield _entity(
        "#run",
        "CreateAction",
        name=f"the study {folder.name}",
        description="Snakemake made all artifacts of the study from its config.",
        instrument={"@id": _SNAKEFILE},
        object={"@id": CONFIG},
        result=_refer(*results),
        **times,
    )
    yield _entity(
        "#engine-run",
        "OrganizeAction",
        name=f"Snakemake ran the study {folder.name}",
        description="What the engine did: one control action for each job.",
        instrument={"@id": "#snakemake"},
        object=_refer(*(job.control for job in jobs)),
        result={"@id": "#run"},
        **times,
    )


def _tool(rule: str) -> str:
    return f"{CODE}/scripts/{rule}.py"


def _step(rule: str) -> str:
    return f"{_SNAKEFILE}#{rule}"


def _parameters(rule: str, jobs: list[_Job]) -> list[str]:
    names = [name for name in _KINDS if any(name in job.values for job in jobs)]
    return [f"#tool/{rule}/{name}" for name in names]


def _file(folder: StudyFolder, name: str) -> Entity:
    path = folder.path / name
    return _described(name, file_digest(path), path.stat().st_size)


def _described(name: str, digest: str, size: int) -> Entity:
    form = _TYPES.get(Path(name).suffix, "application/octet-stream")
    if name.endswith(f"/{MANIFEST}"):
        form = "application/vnd.in-toto+json"
    properties = {"name": name, "sha256": digest, "contentSize": str(size), "encodingFormat": form}
    return _entity(quote(name), "File", **properties)


def _entity(identity: str, kind: str, **properties: Any) -> Entity:
    present = {key: value for key, value in properties.items() if value not in (None, [])}
    return {"@id": identity, "@type": kind, **present}


def _refer(*identities: str) -> list[Entity] | Entity:
    """Refer to others: flattened JSON-LD has no list of one."""
    listed = [{"@id": identity} for identity in identities]
    return listed[0] if len(listed) == 1 else listed


def licence_of(metadata: bytes) -> str | None:
    """Read the licence that a crate states; None where it cannot be read.

    Args:
        metadata: the content of ``ro-crate-metadata.json``.
    """
    try:
        graph: Iterable[Entity] = json.loads(metadata)["@graph"]
        licence = next(entity["license"] for entity in graph if entity["@id"] == "./")
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None
    return licence if isinstance(licence, str) else None
