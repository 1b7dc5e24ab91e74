"""Every number of metrics.csv again, from the per-item files and none of the workflow's code.

Formulas are written out from their sources; of libraries only quantiles are used. What is compared
with it stands in tests/workflow/test_recomputed.py and tests/integration/test_embedded_study.py.
"""

import csv
import gzip
import json
import math
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

Model = tuple[str, str, int | None, int]
"""Teacher, arm, seed, step."""
Key = tuple[str, str, int | None, int, str, str]
"""A model, a task, a metric."""

RESAMPLES, SEED = 2000, 17
GOLD = "gold_bits_per_byte"


@dataclass
class Number:
    """A number and what belongs to it; NaN where it has no such thing."""

    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: float = math.nan
    clusters: float = math.nan


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, compressed or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def model_of(parts: Sequence[str]) -> Model:
    """Tell a model from the folders it lies in: teacher/arm or teacher/arm/seed_S/step_NN."""
    if len(parts) == 2:
        return parts[0], parts[1], None, 0
    teacher, arm, seed, step = parts
    return teacher, arm, int(seed.removeprefix("seed_")), int(step.removeprefix("step_"))


# --- formulas -------------------------------------------------------------------------------


def groups(values: Sequence[float], sources: Sequence[Hashable]) -> list[float]:
    """Add up values by source."""
    sums: dict[Hashable, float] = defaultdict(float)
    for value, source in zip(values, sources, strict=True):
        sums[source] += value
    return list(sums.values())


def quotient(above: Sequence[float], below: Sequence[float], sources: Sequence[Hashable]) -> Number:
    """Take sum(above) / sum(below), with the linearised, cluster-robust error (CR1)."""
    total = math.fsum(below)
    value = math.fsum(above) / total
    residuals = groups([a - value * b for a, b in zip(above, below, strict=True)], sources)
    g = len(residuals)
    stderr = math.sqrt(g / (g - 1) * math.fsum(r * r for r in residuals)) / total
    half = stderr * stats.t.ppf(0.975, g - 1)
    return Number(value, stderr, value - half, value + half, len(above), g)


def share(hits: Sequence[bool], sources: Sequence[Hashable]) -> Number:
    """Take a share with Wilson's interval, at the effective size where sources have several."""
    found = quotient([float(hit) for hit in hits], [1.0] * len(hits), sources)
    p, trials, z = found.value, float(len(hits)), float(stats.norm.ppf(0.975))
    if found.clusters < len(hits):
        trials = p * (1 - p) / found.stderr**2 if found.stderr > 0 else found.clusters
        z = float(stats.t.ppf(0.975, found.clusters - 1))
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    found.low, found.high = max(0.0, centre - half), min(1.0, centre + half)
    return found


class Resamples:
    """What 2000 draws of sources give; one draw for all that have as many sources."""

    def __init__(self) -> None:
        self._drawn: dict[int, np.ndarray] = {}

    def means(
        self, columns: Sequence[Sequence[float]], sources: Sequence[Hashable]
    ) -> list[np.ndarray]:
        """Give each column's mean per item in every resample."""
        labels = sorted(set(sources), key=lambda source: (str(type(source)), source))
        place = {label: i for i, label in enumerate(labels)}
        count = len(labels)
        if count not in self._drawn:
            drawn = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
            self._drawn[count] = drawn
        drawn = self._drawn[count]
        sums = np.zeros((len(columns) + 1, count))
        for row, column in enumerate([*columns, [1.0] * len(sources)]):
            for value, source in zip(column, sources, strict=True):
                sums[row, place[source]] += value
        totals = [sums[row][drawn].sum(axis=1) for row in range(len(sums))]
        return [total / totals[-1] for total in totals[:-1]]


def spread_of(drawn: np.ndarray, count: int) -> tuple[float, float, float]:
    """Give standard error and the ends of the expanded percentile interval."""
    if not np.isfinite(drawn).all() or drawn.max() == drawn.min():
        return math.nan, math.nan, math.nan
    tail = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(drawn.std(ddof=1)), float(low), float(high)


def exact_mcnemar(gained: int, lost: int) -> float:
    """Add up the binomial probabilities of what is at least as far from even, both sides."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


# --- per-item files -------------------------------------------------------------------------


@dataclass
class Study:
    """The numbers of a finished study, as far as per-item files tell them."""

    folder: Path
    numbers: dict[Key, Number] = field(default_factory=dict)
    resamples: Resamples = field(default_factory=Resamples)

    def add(self, model: Model, task: str, metric: str, number: Number) -> None:
        """Note down a number."""
        assert (*model, task, metric) not in self.numbers
        self.numbers[*model, task, metric] = number

    def find(self, rule: str, file: str) -> Iterable[tuple[list[str], Path]]:
        """Give every such file of a rule, and the folders that lead to it."""
        top = self.folder / rule
        for path in sorted(top.rglob(file)):
            yield list(path.relative_to(top).parent.parts), path


def recompute(folder: Path) -> dict[Key, Number]:
    """Recompute the numbers of metrics.csv of the study in a folder."""
    study = Study(folder)
    _sizes(study)
    _training(study)
    _texts(study)
    _tasks(study)
    _choices(study)
    _generations(study)
    for (task,), path in study.find("measure_overlap", "items.jsonl.gz"):
        items = read_lines(path)
        teachers = {key[0] for key in study.numbers}
        for teacher in teachers:
            found = share([item["overlap"] for item in items], _sources(items))
            study.add((teacher, "teacher", None, 0), task, "overlap", found)
    return study.numbers


def _sources(items: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    return [item.get("source", item["index"]) for item in items]


def _tasks(study: Study) -> None:
    answers: dict[tuple[str, Model], list[dict[str, Any]]] = {}
    for parts, path in study.find("evaluate", "samples.jsonl.gz"):
        answers[parts[-1], model_of(parts[:-1])] = read_lines(path)
    for (task, model), items in answers.items():
        sources = _sources(items)
        theirs = answers[task, (model[0], "teacher", None, 0)]
        assert [item["index"] for item in items] == [item["index"] for item in theirs]
        chance = sum(1 / len(item["log_likelihoods"]) for item in items) / len(items)
        for metric in items[0]["correct"]:
            ours = [item["correct"][metric] for item in items]
            study.add(model, task, metric, share(ours, sources))
            if model[1] != "teacher":
                _beside_teacher(study, (*model, task, metric), (items, theirs), chance)
        _gold(study, (*model, task, GOLD), (items, theirs))
        if model[1] == "teacher":
            study.add(model, task, "chance", Number(chance))


def _gold(study: Study, key: Key, pair: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """What the right options cost, of one task and of the mean over all tasks so far."""
    if "sums" not in pair[0][0] or GOLD not in pair[0][0]["sums"]:
        return
    sources = _sources(pair[0])
    bits, others = (
        [-item["log_likelihoods"][item["target"]] / math.log(2) for item in items] for items in pair
    )
    counts = [float(item["sums"][GOLD][1]) for item in pair[0]]
    study.add(key[:4], key[4], GOLD, quotient(bits, counts, sources))
    if key[1] == "teacher":
        return
    each = sum(counts) / len(counts)
    ours, theirs = ([value / each for value in values] for values in (bits, others))
    resampled = study.resamples.means([ours, theirs], sources)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = quotient(differences, [1.0] * len(ours), sources)
    _, found.low, found.high = spread_of(resampled[0] - resampled[1], len(set(sources)))
    study.add(key[:4], key[4], f"{GOLD}_difference", found)


def _choices(study: Study) -> None:
    """The means over tasks."""
    for name in (GOLD, f"{GOLD}_difference"):
        tasks: dict[Model, list[Number]] = defaultdict(list)
        for key, number in study.numbers.items():
            if key[5] == name:
                tasks[key[:4]].append(number)
        for model, numbers in tasks.items():
            count = len(numbers)
            stderr = math.sqrt(sum(number.stderr**2 for number in numbers)) / count
            value = sum(number.value for number in numbers) / count
            mean = Number(value, stderr, n=sum(number.n for number in numbers))
            study.add(model, "choices", name, mean)


def _beside_teacher(
    study: Study,
    key: Key,
    pair: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    chance: float,
) -> None:
    model, task, metric = key[:4], key[4], key[5]
    sources = _sources(pair[0])
    ours, theirs = ([float(item["correct"][metric]) for item in items] for items in pair)
    ones, g = [1.0] * len(ours), len(set(sources))
    resampled = study.resamples.means([ours, theirs], sources)
    found = quotient([a - b for a, b in zip(ours, theirs, strict=True)], ones, sources)
    _, found.low, found.high = spread_of(resampled[0] - resampled[1], g)
    study.add(model, task, f"{metric}_difference", found)
    gained = sum(a > b for a, b in zip(ours, theirs, strict=True))
    lost = sum(a < b for a, b in zip(ours, theirs, strict=True))
    study.add(model, task, f"{metric}_mcnemar", Number(exact_mcnemar(gained, lost), n=len(ours)))
    own, other = sum(ours) / len(ours), sum(theirs) / len(theirs)
    for name, level in (("retention", 0.0), ("margin", chance)):
        if other <= level:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (resampled[0] - level) / (resampled[1] - level)
        drawn[resampled[1] <= level] = math.nan
        number = Number((own - level) / (other - level), n=len(ours), clusters=g)
        number.stderr, number.low, number.high = spread_of(drawn, g)
        study.add(model, task, f"{metric}_{name}", number)
    for name, column in (("changed", "choice"), ("flipped", "correct")):
        differs = [a[column][metric] != b[column][metric] for a, b in zip(*pair, strict=True)]
        study.add(model, task, f"{metric}_{name}", share(differs, sources))


def _texts(study: Study) -> None:
    for parts, path in study.find("evaluate_heldout", "samples.jsonl.gz"):
        rows, model, text = read_lines(path), model_of(parts[:-1]), parts[-1]
        tokens, sources = [row["tokens"] for row in rows], _sources(rows)
        for metric in ("loss", "kl", "agreement"):
            if metric not in rows[0]:
                continue
            found = quotient([b[metric] * b["tokens"] for b in rows], tokens, sources)
            study.add(model, text, metric, found)
        loss = study.numbers[*model, text, "loss"]
        value, low, high = (math.exp(end) for end in (loss.value, loss.low, loss.high))
        whole = Number(value, value * loss.stderr, low, high, loss.n, loss.clusters)
        study.add(model, text, "perplexity", whole)


def _generations(study: Study) -> None:
    for parts, path in study.find("generate", "samples.jsonl"):
        samples, model = read_lines(path), model_of(parts)
        for n in (1, 2, 3):
            grams = [
                tuple(sample["tokens"][i : i + n])
                for sample in samples
                for i in range(len(sample["tokens"]) - n + 1)
            ]
            found = Number(len(set(grams)) / len(grams), n=len(grams))
            study.add(model, "generation", f"distinct_{n}", found)
        counts = [len(sample["tokens"]) for sample in samples]
        losses = [s["teacher_loss"] * n for s, n in zip(samples, counts, strict=True)]
        found = quotient(losses, counts, [sample["index"] for sample in samples])
        study.add(model, "generation", "teacher_loss", found)


# --- weights and histories ------------------------------------------------------------------


def stored(folder: Path) -> tuple[int, int]:
    """Count the numbers, and the bytes, in a folder's safetensors, from the files' headers."""
    numbers = size = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        numbers += sum(
            math.prod(tensor["shape"]) for name, tensor in header.items() if name[:2] != "__"
        )
        size += path.stat().st_size
    return numbers, size


def counted_flops(folder: Path, length: int) -> int:
    """Count a forward pass's FLOPs per token from the weights' shapes.

    Each matrix takes two per number and token, but for those that are looked up; attention takes
    2 * 2 * L * width per layer and token for scores and values (GPT-2 and its compact blocks).
    """
    (path,) = folder.glob("*.safetensors")
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
    total = 0
    for name, tensor in header.items():
        shape = tensor.get("shape", [])
        if len(shape) == 2 and not name.endswith(("wpe.weight", "positions.weight")):
            # The token embedding is the output layer too, and is multiplied there.
            total += 2 * math.prod(shape)
        if name.endswith("attn.c_proj.weight"):
            total += 4 * length * shape[0]
    return total


def _sequence_length(folder: Path, teacher: str) -> int:
    path = folder / "prepare_corpus" / teacher / "heldout.safetensors"
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        length: int = json.loads(stream.read(size))["input_ids"]["shape"][1]
    return length


def _sizes(study: Study) -> None:
    for path in sorted(study.folder.rglob("*.safetensors")):
        folder = path.parent
        if not (folder / "config.json").exists() or ".work" in str(folder):
            continue
        parts = list(folder.relative_to(study.folder).parts[1:])
        model = model_of(parts if len(parts) > 1 else [*parts, "teacher"])
        numbers, size = stored(folder)
        study.add(model, "model", "parameters", Number(numbers))
        study.add(model, "model", "checkpoint_bytes", Number(size))
        flops = counted_flops(folder, _sequence_length(study.folder, model[0]))
        study.add(model, "model", "flops_per_token", Number(flops))
        substitution = folder / "substitution.json"
        if substitution.exists():
            block = json.loads(substitution.read_text(encoding="utf-8"))["block"]
            if block is not None:
                study.add(model, "model", "replaced_block", Number(block))


def _training(study: Study) -> None:
    for path in sorted(study.folder.rglob("history.jsonl")):
        rule, *parts = path.parent.relative_to(study.folder).parts
        if len(parts) != 4:
            continue
        teacher, arm, seed, step = model_of(parts)
        for metric in ("tokens", "flops"):
            # Only the steps of a chain go on from one another.
            steps = range(1, step + 1) if rule == "substitute_block" else [step]
            spent = 0
            for each in steps:
                earlier = path.parents[1] / f"step_{each:02}" / path.name
                spent += read_lines(earlier)[-1][metric]
            study.add((teacher, arm, seed, step), "training", metric, Number(spent))


def read_metrics(path: Path) -> dict[Key, Number]:
    """Read a table of metrics.csv's form."""
    with path.open(encoding="utf-8", newline="") as stream:
        return {
            (
                row["teacher"],
                row["arm"],
                int(row["seed"]) if row["seed"] else None,
                int(row["step"]),
                row["task"],
                row["metric"],
            ): Number(
                *(
                    float(row[name] or "nan")
                    for name in ("value", "stderr", "low", "high", "n", "clusters")
                )
            )
            for row in csv.DictReader(stream)
        }
