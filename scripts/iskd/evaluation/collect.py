"""From all evaluations of a study to one tidy table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iskd.evaluation.results import read_result

HELDOUT = "heldout"
MODEL = "model"


def collect(
    evaluations: Sequence[str], heldout: Sequence[str], spec: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Give the rows of metrics.csv.

    Args:
        evaluations: ``result.json`` of every model on every task.
        heldout: ``result.json`` of every model's held-out loss.
        spec: ``study``; ``evaluations`` and ``heldout``, which say in the same order what each
            file is about (teacher, arm, seed, step, and for the former the task).

    Returns:
        one row per number; a model's parameters are rows too (task ``model``), and its reduction
        is 1 - parameters / teacher's
    """
    sizes: dict[tuple[Any, ...], int] = {}
    teachers: dict[str, int] = {}
    losses = [read_result(Path(path)) for path in heldout]
    for about, result in zip(spec["heldout"], losses, strict=True):
        sizes[_key(about)] = result["facts"]["parameters"]
        if about["step"] == 0:
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

    for about, result in zip(spec["heldout"], losses, strict=True):
        parameters = {"value": sizes[_key(about)], "stderr": None, "n": None}
        add(about, MODEL, {"parameters": parameters})
        add(about, HELDOUT, result["metrics"])
    for about, path in zip(spec["evaluations"], evaluations, strict=True):
        add(about, about["task"], read_result(Path(path))["metrics"])
    return rows


def _key(about: Mapping[str, Any]) -> tuple[Any, ...]:
    return about["teacher"], about["arm"], about["seed"], about["step"]
