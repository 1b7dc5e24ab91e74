"""Work out again what follows cheaply from what lies there, and compare.

Numbers from per-item answers; figures, tables and texts from numbers, by the script that made them,
as it stands in this checkout; sizes and replaced blocks from the weights' own header and config.
"""

import json
import logging
import multiprocessing
import os
import runpy
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from iskd.audit.compare import unpacked
from iskd.audit.findings import Code, Finding
from iskd.audit.folder import Found, StudyFolder, weights_in
from iskd.audit.planned import Planned
from iskd.audit.rule_kinds import FROM_ITEMS, FROM_NUMBERS
from iskd.provenance.artifact import file_digest
from iskd.provenance.fingerprint import SCRIPTS
from iskd.provenance.statement import Statement
from iskd.provenance.tensors import count_parameters
from iskd.runtime.messages import Assignment

# Rules whose artifacts hold an answer per item beside their result.
_WITH_ANSWERS = ("evaluate", "evaluate_heldout")
# An artifact takes tens of milliseconds, and a process a few more.
_WORTH_A_PROCESS = 10


def is_cheap(rule: str) -> bool:
    """Tell whether a rule's artifacts are made again by a verification."""
    return rule in FROM_ITEMS or rule.startswith(FROM_NUMBERS)


@contextmanager
def remaking(
    folder: StudyFolder, plan: Mapping[str, Planned], places: list[str]
) -> Iterator[Iterator[Finding]]:
    """Make cheap artifacts again in scratch folders and compare the bytes.

    Where there are many, other processes do so while this is open.

    Args:
        folder: the study.
        plan: what it consists of.
        places: artifacts whose statements name this checkout's code.

    Yields:
        What is found.
    """
    # Cards are the many and the quick ones: what is slow comes first, for all to end together.
    ordered = sorted(places, key=lambda place: plan[place].request["rule"] == "model_card")
    workers = min(os.cpu_count() or 1, len(places) // _WORTH_A_PROCESS)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield (finding for place in ordered for finding in _remade(folder, plan, place))
        return
    # A fork knows at once what this process knows.
    fork, given = multiprocessing.get_context("fork"), (folder, plan)
    with ProcessPoolExecutor(workers, fork, initializer=_Worker.start, initargs=given) as pool:
        found = pool.map(_Worker.remade, ordered)
        yield (finding for findings in found for finding in findings)


class _Worker:
    """One of several processes that make artifacts again."""

    folder: ClassVar[StudyFolder]
    plan: ClassVar[Mapping[str, Planned]]

    @classmethod
    def start(cls, folder: StudyFolder, plan: Mapping[str, Planned]) -> None:
        cls.folder, cls.plan = folder, plan

    @classmethod
    def remade(cls, place: str) -> list[Finding]:
        return list(_remade(cls.folder, cls.plan, place))


def _remade(folder: StudyFolder, plan: Mapping[str, Planned], place: str) -> Iterator[Finding]:
    found, planned = folder.artifacts[place], plan[place]
    assert found.statement is not None  # noqa: S101 - chosen for what it says
    with tempfile.TemporaryDirectory(prefix="iskd-again-") as scratch, _quiet():
        try:
            made = _run_script(folder, planned, found.statement, Path(scratch))
        except (Exception, SystemExit) as error:
            message = f"{planned.request['rule']} fails on what lies here: {error}"
            yield Finding(place, _code_of(planned), " ".join(message.split()))
            return
    for name, file in found.statement.files.items():
        if made.get(name) != file.sha256:
            message = "made again from what lies here, it has other bytes"
            yield Finding(f"{place}/{name}", _code_of(planned), message)


def _code_of(planned: Planned) -> Code:
    from_items = planned.request["rule"] in FROM_ITEMS
    return Code.METRIC_NOT_FROM_ITEMS if from_items else Code.NOT_FROM_METRICS


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what scripts log from mixing with the findings; stay off the network."""
    before = logging.root.manager.disable
    offline = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE",)}
    logging.disable(logging.CRITICAL)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        for name, value in offline.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _run_script(
    folder: StudyFolder, planned: Planned, statement: Statement, scratch: Path
) -> dict[str, str]:
    """Run a rule's script as one of several processes would, and give its files' digests."""
    out = scratch / "out"
    out.mkdir()

    def here(name: str) -> str:
        below = folder.below(name)
        return name if below is None else str(folder.path / below)

    inputs: dict[str, Any] = {
        name: here(files) if isinstance(files, str) else [here(file) for file in files]
        for name, files in planned.inputs.items()
    }
    # The plan's, not the statement's: nobody else says what is written where.
    request = planned.request
    params = request["parameters"] | {"code": request["code"]}
    if request["seed"] is not None:
        params["seed"] = request["seed"]
    rule = request["rule"]
    assignment = Assignment(
        script=str(SCRIPTS / f"{rule}.py"),
        rule=rule,
        params=params,
        wildcards=request["wildcards"],
        inputs=inputs,
        threads=1,
        log=None,
        request=statement.request,
        out=str(out),
        work=str(scratch / "work"),
        started=0.0,
        processes=1,
        parallel="ddp",
    )
    runpy.run_path(assignment.script, init_globals={"snakemake": assignment}, run_name="__main__")
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): file_digest(path) for path in files}


def evaluations(folder: StudyFolder) -> Iterator[Finding]:
    """Work out every evaluation's numbers from its answers to the items."""
    for place, found in folder.artifacts.items():
        if found.statement is None or found.statement.request["rule"] not in _WITH_ANSWERS:
            continue
        try:
            yield from _evaluation(folder, place, found.statement)
        except Exception as error:
            message = f"its answers cannot be read: {type(error).__name__}: {error}"
            yield Finding(place, Code.METRIC_NOT_FROM_ITEMS, " ".join(message.split()))


def _evaluation(folder: StudyFolder, place: str, statement: Statement) -> Iterator[Finding]:
    from iskd.evaluation.losses import heldout_metrics
    from iskd.evaluation.results import RESULT, SAMPLES, read_result, read_samples
    from iskd.evaluation.scores import metrics_of

    unpacked(folder.path / place / SAMPLES)
    samples = read_samples(folder.path / place / SAMPLES)
    result = read_result(folder.path / place / RESULT)
    if statement.request["rule"] == "evaluate":
        task = statement.request["parameters"]["task"]
        metrics = metrics_of(samples, task["kind"], stock=task["stock"])
    else:
        metrics = heldout_metrics(samples)
    again = json.loads(json.dumps({name: vars(metric) for name, metric in metrics.items()}))
    for name in sorted({*again, *result["metrics"]}):
        old, new = result["metrics"].get(name), again.get(name)
        if old != new:
            values = [None if number is None else number["value"] for number in (old, new)]
            message = f"{name} is said to be {values[0]}, the items give {values[1]}"
            yield Finding(f"{place}/{RESULT}", Code.METRIC_NOT_FROM_ITEMS, message)
    for name, value in statement.summary.items():
        if name in again and again[name]["value"] != value:
            message = f"the manifest says {name} is {value}, the items give {again[name]['value']}"
            yield Finding(place, Code.METRIC_NOT_FROM_ITEMS, message)


def models(folder: StudyFolder) -> Iterator[Finding]:
    """Count parameters in the weights' header, and compare replaced blocks with the plan."""
    for place, found in folder.artifacts.items():
        if found.statement is None or not weights_in(found.files):
            continue
        try:
            yield from _parameters(folder, found)
            if found.statement.request["rule"] == "substitute_block":
                yield from _blocks(folder, place, found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"the model cannot be read: {type(error).__name__}: {error}"
            yield Finding(place, Code.WEIGHTS_NOT_AS_SAID, " ".join(message.split()))


def _parameters(folder: StudyFolder, found: Found) -> Iterator[Finding]:
    assert found.statement is not None  # noqa: S101 - the caller has looked
    place, stated = found.place, found.statement.summary.get("parameters")
    top = folder.path / place
    counted = sum(count_parameters(top / name) for name in weights_in(found.files))
    if stated is not None and stated != counted:
        text = f"the weights have {counted} parameters, the manifest says {stated}"
        yield Finding(place, Code.WEIGHTS_NOT_AS_SAID, text)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _changed(config: Mapping[str, Any]) -> set[int]:
    return {
        block["index"] for kind in ("compact_blocks", "narrow_blocks") for block in config[kind]
    }


def _blocks(folder: StudyFolder, place: str, found: Found) -> Iterator[Finding]:
    """Check that one more block is replaced than a step before, and that it is the planned one."""
    assert found.statement is not None  # noqa: S101 - the caller has looked
    top, wildcards = folder.path / place, found.statement.request["wildcards"]
    step = int(wildcards["step"])
    now = _changed(_read_json(top / "config.json"))
    facts = _read_json(top / "substitution.json")
    replaced = facts["block"]
    before: set[int] = set()
    if step > 1:
        before = _changed(_read_json(top.parent / f"step_{step - 1:02d}" / "config.json"))
    # Recipe parts may change several blocks in a step, and one that was changed before.
    chosen = {row["block"] for row in facts["changes"]} if "changes" in facts else None
    wrong = now != before | ({replaced} if chosen is None else chosen)
    if wrong or (chosen is None and replaced in before):
        text = f"blocks {sorted(now)} are replaced, after {sorted(before)} and {replaced}"
        yield Finding(place, Code.BLOCKS_NOT_AS_PLANNED, text)
    keys = (wildcards["teacher"], wildcards["arm"], f"seed_{wildcards['seed']}")
    plan = folder.path.joinpath("plan_substitutions", *keys, "plan.json")
    if plan.is_file():
        planned = [entry.get("block") for entry in _read_json(plan)["steps"]]
        if step > len(planned) or planned[step - 1] not in (None, replaced):
            text = f"block {replaced} is replaced at step {step}, the plan has {planned}"
            yield Finding(place, Code.BLOCKS_NOT_AS_PLANNED, text)
