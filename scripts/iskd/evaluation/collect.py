"""From all evaluations of a study to one tidy table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.evaluation import statistics
from iskd.evaluation.kinds import GOLD
from iskd.evaluation.metric import Metric, metric_of
from iskd.evaluation.results import TEACHER_ARM, ModelKey, model_key, read_result, read_samples
from iskd.evaluation.scores import gold_bits, score_of

HELDOUT = "heldout"
MODEL = "model"
TRAINING = "training"
GENERATION = "generation"
CHOICES = "choices"
"""What is a mean over all multiple-choice tasks."""
FACTS = ("parameters", "flops_per_token", "checkpoint_bytes")
"""What the held-out loss finds out about a model."""


def collect(files: Mapping[str, Sequence[str]], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the rows of metrics.csv.

    Args:
        files: paths by what they are: ``evaluations`` and ``samples`` (``result.json`` and
            ``samples.jsonl.gz`` of every model on every task), ``heldout`` (``result.json`` of
            every model's loss on every text), ``histories`` (``history.jsonl`` of every model that
            was trained), ``substitutions`` (``substitution.json`` of every substituted block),
            ``generations`` and ``overlaps`` (``result.json`` of every model that continued
            prompts, and of every task's overlap with the corpus).
        spec: ``study``; for each key of `files` but ``samples`` what each file is about, in the
            same order (teacher, arm, seed, step; for a task's or a text's its name, and for an
            overlap the task alone); ``chained``, the arms whose steps build on one another;
            ``bootstrap``, the number of resamples and their seed.

    Returns:
        one row per number. Beside what was evaluated that is what the model is (task ``model``) and
        what its training took since the teacher (task ``training``); its reduction is
        1 - parameters / teacher's. Where a model and its teacher answered the same items, they are
        compared item by item (see :func:`beside_teacher`). An overlap stands beside each teacher.

    Raises:
        UserError: samples are damaged, or a model's are not about its teacher's items.
    """
    losses = [read_result(Path(path)) for path in files["heldout"]]
    table = _Rows(spec["study"], zip(spec["heldout"], losses, strict=True))
    for about, result in zip(spec["heldout"], losses, strict=True):
        table.add(about, about["text"], result["metrics"])
        if about["text"] == HELDOUT:
            table.add(about, MODEL, _plain({key: result["facts"][key] for key in FACTS}))
    for about, path in zip(spec["substitutions"], files["substitutions"], strict=True):
        block = json.loads(Path(path).read_text(encoding="utf-8"))["block"]
        # A step of recipe parts may find its budget met and change none.
        if block is not None:
            table.add(about, MODEL, _plain({"replaced_block": block}))
    evaluated = {model_key(about) for about in spec["heldout"]}
    for key, cost in _costs(files["histories"], spec).items():
        if key in evaluated:
            about = dict(zip(("teacher", "arm", "seed", "step"), key, strict=True))
            table.add(about, TRAINING, _plain(cost))
    bits: dict[ModelKey, list[Mapping[str, Metric]]] = {}
    for about, metrics in _answers(files, spec):
        table.add(about, about["task"], metrics)
        if GOLD in metrics:
            bits.setdefault(model_key(about), []).append(metrics)
    for key, found in bits.items():
        about = dict(zip(("teacher", "arm", "seed", "step"), key, strict=True))
        table.add(about, CHOICES, _mean_of_tasks(found))
    for about, path in zip(spec["generations"], files["generations"], strict=True):
        table.add(about, GENERATION, read_result(Path(path))["metrics"])
    for about, path in zip(spec["overlaps"], files["overlaps"], strict=True):
        for teacher in table.teachers:
            model = {"teacher": teacher, "arm": TEACHER_ARM, "seed": None, "step": 0}
            table.add(model, about["task"], read_result(Path(path))["metrics"])
    return table.rows


class _Rows:
    """The rows so far, and how large every model is."""

    def __init__(
        self, study: str, losses: Iterator[tuple[Mapping[str, Any], dict[str, Any]]]
    ) -> None:
        self.study, self.rows = study, list[dict[str, Any]]()
        self.sizes: dict[ModelKey, int] = {}
        self.teachers: dict[str, int] = {}
        for about, result in losses:
            if about["text"] == HELDOUT:
                self.sizes[model_key(about)] = result["facts"]["parameters"]
                if about["arm"] == TEACHER_ARM:
                    self.teachers[about["teacher"]] = result["facts"]["parameters"]

    def add(self, about: Mapping[str, Any], task: str, metrics: Mapping[str, Any]) -> None:
        reduction = 1 - self.sizes[model_key(about)] / self.teachers[about["teacher"]]
        model = {k: about[k] for k in ("teacher", "arm", "seed", "step")}
        for name, metric in metrics.items():
            self.rows.append(
                {"study": self.study, **model, "reduction": reduction, "task": task}
                | {"metric": name, **(vars(metric) if isinstance(metric, Metric) else metric)}
            )


def _mean_of_tasks(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Give the mean over tasks of what gold options cost; the tasks' items are independent."""
    means = {}
    for name in (GOLD, f"{GOLD}_difference"):
        found = [_as_metric(metrics[name]) for metrics in tasks if name in metrics]
        if len(found) == len(tasks):
            errors = [one.stderr for one in found if one.stderr is not None]
            stderr = math.hypot(*errors) / len(found) if len(errors) == len(found) else None
            value = math.fsum(one.value for one in found) / len(found)
            means[name] = Metric(value, stderr, sum(one.n for one in found))
    return means


def _as_metric(metric: Metric | Mapping[str, Any]) -> Metric:
    return metric if isinstance(metric, Metric) else Metric(**metric)


def beside_teacher(
    samples: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    chance: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Metric]:
    """Compare a model with its teacher on the same items, by source (`iskd.evaluation.statistics`).

    Args:
        samples: the model's records (`iskd.evaluation.harness.TaskResult`).
        theirs: the teacher's, of the same items in the same order.
        metric: a metric that is a mean over items.
        chance: expected score of guessing; None where nothing can be guessed.
        resamples: bootstrap resamples.
        seed: seed of their draw.

    Returns:
        ``<metric>_difference`` (model - teacher); of accuracies also ``_mcnemar`` (the exact p
        value), ``_retention`` and ``_margin`` (what is kept of the teacher's score, and of its
        margin over chance, where there is any), ``_flipped`` (share of items on which one of the
        two is right) and ``_changed`` (share of items for which they chose different options)
    """
    sources = [sample["source"] for sample in samples]
    ours, other = ([score_of(item, metric) for item in items] for items in (samples, theirs))
    drawn = {"resamples": resamples, "seed": seed}
    if not all(metric in item["correct"] for item in (*samples, *theirs)):
        return {
            f"{metric}_difference": metric_of(
                statistics.paired_difference(ours, other, sources, **drawn)
            )
        }
    found = statistics.compare_scores(ours, other, sources, chance=chance or 0.0, **drawn)
    p = statistics.mcnemar_p(ours, other)
    compared = {
        "difference": metric_of(found.difference),
        "mcnemar": Metric(p, None, len(ours)),
        "flipped": metric_of(statistics.changed(ours, other, sources)),
    }
    if found.retention:
        compared["retention"] = metric_of(found.retention)
    if found.margin and chance is not None:
        compared["margin"] = metric_of(found.margin)
    if all(metric in item["choice"] for item in samples):
        chosen, kept = ([item["choice"][metric] for item in items] for items in (samples, theirs))
        compared["changed"] = metric_of(statistics.changed(chosen, kept, sources))
    return {f"{metric}_{name}": number for name, number in compared.items()}


def _answers(
    files: Mapping[str, Sequence[str]], spec: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Give each model's metrics of each task, those beside its teacher included."""
    paths = [Path(path) for path in files["samples"]]
    places = dict(
        zip([(*model_key(a), a["task"]) for a in spec["evaluations"]], paths, strict=True)
    )
    teachers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for about, file, path in zip(spec["evaluations"], files["evaluations"], paths, strict=True):
        result, task, teacher = read_result(Path(file)), about["task"], about["teacher"]
        metrics = dict(result["metrics"])
        chance = result["facts"].get("chance")
        if about["arm"] == TEACHER_ARM:
            if chance is not None:
                metrics |= _plain({"chance": chance})
            yield about, metrics
            continue
        if (teacher, task) not in teachers:
            theirs = places[teacher, TEACHER_ARM, None, 0, task]
            teachers[teacher, task] = read_samples(theirs)
        samples, theirs_read = read_samples(path), teachers[teacher, task]
        if [s["index"] for s in samples] != [s["index"] for s in theirs_read]:
            raise UserError(
                f"{path}: holds other items than the teacher's answers; delete both, the next call "
                f"makes them again"
            )
        if GOLD in metrics and GOLD in theirs_read[0].get("sums", {}):
            named = [sample["source"] for sample in samples]
            pair = gold_bits(samples), gold_bits(theirs_read)
            difference = statistics.paired_difference(*pair, named, **spec["bootstrap"])
            metrics[f"{GOLD}_difference"] = metric_of(difference)
        for name in result["metrics"]:
            if any(name in sample["sums"] for sample in samples if "sums" in sample):
                continue
            metrics |= beside_teacher(
                samples, theirs_read, name, chance=chance, **spec["bootstrap"]
            )
        yield about, metrics


def _plain(values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Write numbers that have no error as metrics."""
    return {name: {"value": value, "stderr": None, "n": None} for name, value in values.items()}


def _costs(histories: Sequence[str], spec: Mapping[str, Any]) -> dict[ModelKey, dict[str, float]]:
    """Add up tokens and FLOPs of training, over all steps so far where steps build on another."""
    own: dict[ModelKey, dict[str, int]] = {}
    for about, path in zip(spec["histories"], histories, strict=True):
        last = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[-1])
        own[model_key(about)] = {key: last[key] for key in ("tokens", "flops")}
    total: dict[ModelKey, dict[str, float]] = {}
    for (teacher, arm, seed, step), cost in own.items():
        before = range(1, step) if arm in spec["chained"] else ()
        parts = [cost, *(own[teacher, arm, seed, earlier] for earlier in before)]
        total[teacher, arm, seed, step] = {key: sum(p[key] for p in parts) for key in cost}
    return total
