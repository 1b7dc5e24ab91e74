"""What clocks and sensors measured, in one table in metrics.csv's form."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iskd.evaluation.efficiency import MODEL, TEACHER, summarise
from iskd.evaluation.metric import Metric
from iskd.evaluation.results import TEACHER_ARM, model_key
from iskd.provenance.artifact import RUN

EFFICIENCY = "efficiency"
COST = "cost"


def collect_measurements(
    files: Mapping[str, Sequence[str]],
    spec: Mapping[str, Any],
    reductions: Mapping[tuple[Any, ...], float],
) -> list[dict[str, Any]]:
    """Give the rows of measurements.csv.

    Args:
        files: paths by what they are: ``repeats`` (``repeats.jsonl`` of every measured model),
            ``trained`` and ``evaluated`` (manifests of the jobs that trained a model and that
            evaluated it, each with its ``run.json`` beside it).
        spec: ``study``; for each key of `files` what each file is about, in the same order;
            ``chained``, the arms whose steps build on one another.
        reductions: by teacher, arm, seed and step.

    Returns:
        one row per number: task ``efficiency`` (see `iskd.evaluation.efficiency.summarise`; a
        teacher's is taken from all jobs that it was measured in) and task ``cost``: device_hours
        (of the jobs that trained the model, all attempts and all steps so far, times GPUs or, where
        there is none, cores), evaluation_hours (likewise, of those that evaluated it) and energy
        (joules of the training, where the device reports them). Where a job left no ``run.json``,
        there is no number.
    """
    rows: list[dict[str, Any]] = []

    def add(key: tuple[Any, ...], task: str, metrics: Mapping[str, Metric]) -> None:
        about = dict(zip(("teacher", "arm", "seed", "step"), key, strict=True))
        about |= {"study": spec["study"], "reduction": reductions[key], "task": task}
        rows.extend(about | {"metric": name} | vars(metric) for name, metric in metrics.items())

    theirs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for about, path in zip(spec["repeats"], files["repeats"], strict=True):
        text = Path(path).read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        add(model_key(about), EFFICIENCY, summarise(records)[MODEL])
        theirs[about["teacher"]] += [r for r in records if r["who"] == TEACHER]
    for teacher, records in theirs.items():
        add((teacher, TEACHER_ARM, None, 0), EFFICIENCY, summarise(records)[TEACHER])

    own = {
        model_key(about): run
        for about, path in zip(spec["trained"], files["trained"], strict=True)
        if (run := _run(path)) is not None
    }
    for key in own:
        teacher, arm, seed, step = key
        before = range(1, step) if arm in spec["chained"] else ()
        chain = [*((teacher, arm, seed, earlier) for earlier in before), key]
        if key in reductions and all(part in own for part in chain):
            add(key, COST, _costs([own[part] for part in chain]))
    evaluated: dict[tuple[Any, ...], list[dict[str, Any] | None]] = defaultdict(list)
    for about, path in zip(spec["evaluated"], files["evaluated"], strict=True):
        evaluated[model_key(about)].append(_run(path))
    for key, runs in evaluated.items():
        known = [run for run in runs if run is not None]
        if len(known) == len(runs):
            hours = device_hours(known)
            add(key, COST, {"evaluation_hours": Metric(hours, None, len(known))})
    return rows


def _run(manifest: str) -> dict[str, Any] | None:
    path = Path(manifest).with_name(RUN)
    if not path.exists():
        return None
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return run


def _costs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    costs = {"device_hours": Metric(device_hours(runs), None, len(runs))}
    joules = [run.get("energy_joules_in_all") for run in runs]
    if all(number is not None for number in joules):
        costs["energy"] = Metric(float(sum(number or 0 for number in joules)), None, len(runs))
    return costs


def device_hours(runs: Iterable[Mapping[str, Any]]) -> float:
    """Add up how long devices were taken: GPUs, or cores where a job has computed on none.

    Args:
        runs: what the jobs' ``run.json`` say, of all their attempts.
    """
    return sum(_seconds(run) * _devices(run) for run in runs) / 3600


def _seconds(run: Mapping[str, Any]) -> float:
    # Artifacts of before attempts were added up know of the last one alone.
    return float(run.get("seconds_in_all", run["seconds"]))


def _devices(run: Mapping[str, Any]) -> int:
    """Count a job's GPUs, of all its processes, or, where it has computed on none, its cores."""
    return int(run.get("gpus") or run["threads"] * int(run.get("processes") or 1))
