"""From all evaluations of a study to one tidy table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iskd.evaluation.results import read_result

TEACHER = "teacher"
HELDOUT = "heldout"
MODEL = "model"
TRAINING = "training"


def collect(
    evaluations: Sequence[str],
    heldout: Sequence[str],
    histories: Sequence[str],
    spec: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Give the rows of metrics.csv.

    Args:
        evaluations: ``result.json`` of every model on every task.
        heldout: ``result.json`` of every model's held-out loss.
        histories: ``history.jsonl`` of every model that was trained.
        spec: ``study``; ``evaluations``, ``heldout`` and ``histories``, which say in the same order
            what each file is about (teacher, arm, seed, step, and for the first the task); and
            ``chained``, the arms whose steps build on one another.

    Returns:
        one row per number; a model's parameters and its forward FLOPs per token are rows too (task
        ``model``), and what its training took since the teacher (task ``training``: tokens, FLOPs);
        its reduction is 1 - parameters / teacher's
    """
    sizes: dict[tuple[Any, ...], int] = {}
    teachers: dict[str, int] = {}
    losses = [read_result(Path(path)) for path in heldout]
    for about, result in zip(spec["heldout"], losses, strict=True):
        sizes[_key(about)] = result["facts"]["parameters"]
        if about["arm"] == TEACHER:
            teachers[about["teacher"]] = result["facts"]["parameters"]

    rows: list[dict[str, Any]] = []

    def add(about: Mapping[str, Any], task: str, metrics: Mapping[str, Any]) -> None:
        reduction = 1 - sizes[_key(about)] / teachers[about["teacher"]]
        model = {k: about[k] for k in ("teacher", "arm", "seed", "step")}
        for name, metric in metrics.items():
            rows.append(
                {"study": spec["study"], **model, "reduction": reduction, "task": task}
                | {"metric": name, **metric}
            )

    costs = _costs(histories, spec)
    for about, result in zip(spec["heldout"], losses, strict=True):
        facts = {key: result["facts"][key] for key in ("parameters", "flops_per_token")}
        add(about, MODEL, _plain(facts))
        add(about, HELDOUT, result["metrics"])
        if _key(about) in costs:
            add(about, TRAINING, _plain(costs[_key(about)]))
    for about, path in zip(spec["evaluations"], evaluations, strict=True):
        add(about, about["task"], read_result(Path(path))["metrics"])
    return rows


def _plain(values: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Write numbers that have no error as metrics."""
    return {name: {"value": value, "stderr": None, "n": None} for name, value in values.items()}


def _costs(
    histories: Sequence[str], spec: Mapping[str, Any]
) -> dict[tuple[Any, ...], dict[str, int]]:
    """Add up tokens and FLOPs of training, over all steps so far where steps build on another."""
    own: dict[tuple[Any, ...], dict[str, int]] = {}
    for about, path in zip(spec["histories"], histories, strict=True):
        last = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[-1])
        own[_key(about)] = {key: last[key] for key in ("tokens", "flops")}
    total: dict[tuple[Any, ...], dict[str, int]] = {}
    for (teacher, arm, seed, step), cost in own.items():
        before = range(1, step) if arm in spec["chained"] else ()
        parts = [cost, *(own[teacher, arm, seed, earlier] for earlier in before)]
        total[teacher, arm, seed, step] = {key: sum(p[key] for p in parts) for key in cost}
    return total


def _key(about: Mapping[str, Any]) -> tuple[Any, ...]:
    return about["teacher"], about["arm"], about["seed"], about["step"]
