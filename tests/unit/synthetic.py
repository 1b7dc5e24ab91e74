"""Studies that nobody ran: rows of metrics.csv and measurements.csv with numbers such as real ones.

For tests of what reads these tables. The sizes are GPT-2's, or those of a toy; scores fall
and losses rise with every replaced block, differently in each arm and a little in each seed.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Kind = Literal["iskd", "baseline", "hub"]
"""How an arm's models come about: one per step, one at the headline step, or one as given."""


@dataclass(frozen=True)
class SyntheticTask:
    """A task, and how the teacher does on it.

    Attributes:
        scores: the teacher's, by metric; accuracies as fractions.
        headline: the metric to quote.
        chance: accuracy of guessing; None where there is none.
        n: number of items.
        clusters: number of passages they come from.
    """

    scores: Mapping[str, float]
    headline: str
    chance: float | None
    n: int
    clusters: int


GPT2_ARMS: Mapping[str, Kind] = {
    "iskd": "iskd",
    "best": "iskd",
    "one_shot": "baseline",
    "l1": "baseline",
    "kd": "baseline",
    "layer_drop": "baseline",
    "teacher_tuned": "baseline",
    "distilgpt2": "hub",
}
GPT2_TASKS: Mapping[str, SyntheticTask] = {
    "hellaswag": SyntheticTask({"acc": 0.2892, "acc_norm": 0.3114}, "acc_norm", 0.25, 10042, 10042),
    "cbt_context": SyntheticTask({"acc": 0.8435}, "acc", 0.1, 2500, 98),
    "cbt_question": SyntheticTask({"acc": 0.5312}, "acc", 0.1, 2500, 98),
    "lambada_openai": SyntheticTask({"acc": 0.3256, "perplexity": 40.06}, "acc", None, 5153, 2661),
    "arc_easy": SyntheticTask({"acc": 0.4381, "acc_norm": 0.3948}, "acc_norm", 0.25, 2376, 2376),
    "piqa": SyntheticTask({"acc": 0.6289, "acc_norm": 0.6251}, "acc_norm", 0.5, 1838, 1838),
    "winogrande": SyntheticTask({"acc": 0.5162}, "acc", 0.5, 1267, 1267),
    "wikitext": SyntheticTask(
        {"word_perplexity": 37.37, "byte_perplexity": 1.969, "bits_per_byte": 0.977},
        "word_perplexity",
        None,
        62,
        62,
    ),
}
ACCURACIES = ("acc", "acc_norm", "exact_match")

# Parameters of the teacher, and how many of them one replacement saves.
_SIZES = {"gpt2": (124_439_808, 6_362_496), "toy": (1_275_136, 150_400)}
_HELDOUT = {"gpt2": 2.437, "toy": 1.204}
_GPT2_ORDER = (5, 7, 3, 9, 1, 11, 2, 10, 4, 8, 6, 0)
# Nats per token that a replaced block costs, by arm; others draw theirs from their name.
_DAMAGE = {"iskd": 0.052, "best": 0.031, "one_shot": 0.058, "l1": 0.11, "kd": 0.049}
_DAMAGE |= {"layer_drop": 0.066, "teacher_tuned": 0.0, "distilgpt2": 0.09}
# What the tuning on the corpus brings, whatever the arm.
_TUNED = 0.62
_Z = 1.959964
# Blocks of the held-out text, and the stories they come from.
_TEXT_COUNTS = (4211, 2200)


def order_of(steps: int, blocks: int, draw: random.Random | None = None) -> list[int]:
    """Give which block goes when: GPT-2's published order where it fits, or one that is drawn."""
    if draw is not None:
        return draw.sample(range(blocks), steps)
    if blocks == 12:
        return list(_GPT2_ORDER[:steps])
    return sorted(range(blocks), key=lambda block: (abs(block - blocks // 2), block))[:steps]


def some_arms(count: int) -> dict[str, Kind]:
    """Give as many arms, every third of which substitutes block by block."""
    names = [*GPT2_ARMS, *(f"iskd_variant_{i}" for i in range(count))]
    kinds: Sequence[Kind] = ("iskd", "baseline", "baseline")
    more = dict(zip(names[len(GPT2_ARMS) :], (kinds[i % 3] for i in range(count)), strict=True))
    kinds_of = {**GPT2_ARMS, **more}
    return {name: kinds_of[name] for name in names[:count]}


def headline_of(tasks: Mapping[str, SyntheticTask]) -> dict[str, str]:
    """Give the metric to quote of each task."""
    return {name: task.headline for name, task in tasks.items()}


def chance_of(tasks: Mapping[str, SyntheticTask]) -> dict[str, float]:
    """Give the score of guessing of each task that has one."""
    return {name: task.chance for name, task in tasks.items() if task.chance is not None}


def make_metrics(
    arms: Mapping[str, Kind] = GPT2_ARMS,
    seeds: Sequence[int] = (17, 18, 19),
    steps: int = 12,
    tasks: Mapping[str, SyntheticTask] = GPT2_TASKS,
    *,
    texts: Sequence[str] = ("wikitext_text",),
    headline_step: int | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    random_order: Sequence[str] = (),
    scale: Literal["gpt2", "toy"] = "gpt2",
    blocks: int | None = None,
    teacher: str = "gpt2",
    study: str = "synthetic",
    energy: bool = True,
) -> tuple[list[Row], list[Row]]:
    """Give the rows of metrics.csv and of measurements.csv.

    Args:
        arms: the arms and how their models come about.
        seeds: seeds of the arms that are trained.
        steps: of the arms that substitute block by block.
        tasks: the tasks by name.
        texts: other texts on which the loss is measured.
        headline_step: of the baselines; left out, half of the steps.
        batch_sizes: what the efficiency is measured with; none leaves the second table empty.
        random_order: arms that draw their order of replacement from the seed.
        scale: whose numbers.
        blocks: of the teacher; left out, as many as steps.
        teacher: name of the teacher.
        study: name of the study.
        energy: whether the device tells what it used.
    """
    writer = _Writer(
        scale,
        steps=steps,
        blocks=blocks or steps,
        tasks=tasks,
        texts=texts,
        random_order=random_order,
        batch_sizes=batch_sizes,
        energy=energy,
    )
    metrics: list[Row] = []
    measurements: list[Row] = []
    names: Row = {"study": study, "teacher": teacher}
    for arm, seed, step in models_of(arms, seeds, steps, headline_step):
        model = names | {"arm": arm, "seed": seed, "step": step}
        model["reduction"] = 1 - writer.parameters(arm, step) / writer.size
        chained = arms.get(arm) == "iskd"
        metrics += [model | row for row in writer.metrics(arm, seed, step, chained)]
        measurements += [model | row for row in writer.measurements(arm, seed, step)]
    return metrics, measurements


def models_of(
    arms: Mapping[str, Kind], seeds: Sequence[int], steps: int, headline_step: int | None = None
) -> Iterator[tuple[str, int | None, int]]:
    """Give arm, seed and step of each model, the teacher first."""
    headline = headline_step or max(1, steps // 2)
    yield "teacher", None, 0
    for arm, kind in arms.items():
        if kind == "hub":
            yield arm, None, 0
            continue
        for seed in seeds:
            for step in range(1, steps + 1) if kind == "iskd" else [headline]:
                yield arm, seed, step


def make_history(
    arm: str, seed: int, step: int, *, reports: int = 40, tokens: int = 5_760_000
) -> list[Row]:
    """Give the history.jsonl of one training; the arm `best` has a warm start."""
    draw = random.Random(f"history:{arm}:{seed}:{step}")
    end = 1.45 + _damage(arm) * step**1.2
    warm = reports // 10 if arm == "best" else 0
    rows: list[Row] = []
    for report in range(1, warm + reports + 1):
        joint = report > warm
        share = (report - warm) / reports
        loss = end + 0.8 * math.exp(-7 * share) + draw.gauss(0, 0.02)
        rows.append(
            {
                "phase": "joint" if joint else "warm_start",
                "step": report,
                "tokens": tokens * report // (warm + reports),
                "loss": loss if joint else 0.9 - 0.5 * report / (warm + 1),
                "learning_rate": 2e-5 * (1 - share) if joint else 1e-4,
                "flops": 10**12 * report,
            }
        )
    return rows


def _damage(arm: str) -> float:
    return _DAMAGE.get(arm, random.Random(f"damage:{arm}").uniform(0.02, 0.09))


class _Writer:
    """The numbers of one teacher's models."""

    def __init__(
        self,
        scale: str,
        *,
        steps: int,
        blocks: int,
        tasks: Mapping[str, SyntheticTask],
        texts: Sequence[str],
        random_order: Sequence[str],
        batch_sizes: Sequence[int],
        energy: bool,
    ) -> None:
        self.size, per_block = _SIZES[scale]
        # However many blocks there are, a third of the parameters is left when all are replaced.
        self.saved = per_block if steps * per_block < self.size else int(self.size * 0.65 / steps)
        self.base = _HELDOUT[scale]
        self.scale, self.steps, self.blocks = scale, steps, blocks
        self.tasks, self.texts = tasks, texts
        self.random_order, self.batch_sizes, self.energy = random_order, batch_sizes, energy

    def parameters(self, arm: str, step: int) -> int:
        if arm in ("teacher", "teacher_tuned"):
            return self.size
        if arm == "distilgpt2":
            return int(self.size * 0.658)
        # Neurons and heads are not cut as finely as blocks: L1 misses the size a little.
        return self.size - step * self.saved - (1311 if arm == "l1" else 0)

    def penalty(self, arm: str, seed: int | None, step: int) -> float:
        """What the model lost by being made smaller, in nats per token."""
        if arm == "teacher":
            return 0.0
        per_block = _damage(arm)
        depth = self.steps / 2 if arm == "distilgpt2" else step * 12 / max(self.steps, 6)
        noise = random.Random(f"penalty:{arm}:{seed}:{step}").gauss(0, 0.012)
        return max(0.0, per_block * depth**1.15 + noise)

    def metrics(self, arm: str, seed: int | None, step: int, chained: bool) -> Iterator[Row]:
        parameters = self.parameters(arm, step)
        yield _plain("model", "parameters", parameters)
        yield _plain("model", "flops_per_token", 2 * parameters)
        yield _plain("model", "checkpoint_bytes", 4 * parameters + 14_213)
        if chained:
            draw = random.Random(f"order:{seed}") if arm in self.random_order else None
            order = order_of(self.steps, self.blocks, draw)
            yield _plain("model", "replaced_block", order[step - 1])
        if seed is not None:
            tokens = 5_760_000 * step
            yield _plain("training", "tokens", tokens)
            yield _plain("training", "flops", 6 * parameters * tokens)
        penalty = self.penalty(arm, seed, step)
        tuned = _TUNED if seed is not None else 0.0
        yield from self._text("heldout", self.base - tuned + penalty, penalty + 0.3 * tuned, arm)
        for i, text in enumerate(self.texts):
            yield from self._text(text, self.base + 1.1 + 0.2 * i + 2.5 * penalty, penalty, arm)
        for name, task in self.tasks.items():
            draw = random.Random(f"{name}:{arm}:{seed}:{step}")
            for metric, score in task.scores.items():
                yield from self._score(
                    name, metric, score, task, penalty=penalty, arm=arm, draw=draw
                )
            if arm == "teacher":
                yield _plain(name, "overlap", round(draw.uniform(0, 0.03), 6), task.n)
        draw = random.Random(f"generation:{arm}:{seed}:{step}")
        for n, share in ((1, 0.31), (2, 0.72), (3, 0.88)):
            value = share * math.exp(-0.2 * penalty) + draw.gauss(0, 0.004)
            yield _plain("generation", f"distinct_{n}", value, 200)
        yield _interval("generation", "teacher_loss", 2.1 + penalty, 0.03, (200, 200))

    def _text(self, text: str, loss: float, penalty: float, arm: str) -> Iterator[Row]:
        yield _interval(text, "loss", loss, 0.006, _TEXT_COUNTS)
        yield {
            **_interval(text, "perplexity", math.exp(loss), 0.006 * math.exp(loss), _TEXT_COUNTS),
            "low": math.exp(loss - 0.012),
            "high": math.exp(loss + 0.012),
        }
        if arm != "teacher":
            yield _interval(text, "kl", 0.9 * penalty, 0.004, _TEXT_COUNTS)
            yield _interval(text, "agreement", math.exp(-0.8 * penalty), 0.003, _TEXT_COUNTS)

    def _score(
        self,
        name: str,
        metric: str,
        own: float,
        task: SyntheticTask,
        *,
        penalty: float,
        arm: str,
        draw: random.Random,
    ) -> Iterator[Row]:
        counts = (task.n, task.clusters)
        if metric not in ACCURACIES:
            value = own * (1 + 0.15 * penalty if own < 3 else math.exp(1.8 * penalty))
            yield _interval(name, metric, value, 0.03 * value, counts)
            if arm != "teacher":
                yield _interval(name, f"{metric}_difference", value - own, 0.02 * value, counts)
            return
        # On their real number of items scores move by their sampling error, down to guessing.
        floor = task.chance or 0.0
        error = math.sqrt(max(own * (1 - own), 0.01) / task.n)
        share = math.exp(-2.2 * penalty)
        value = own if arm == "teacher" else floor + (own - floor) * share + draw.gauss(0, error)
        value = min(max(value, 0.0), 1.0)
        value = round(value * task.n) / task.n
        own = round(own * task.n) / task.n
        yield _interval(name, metric, value, error * 1.1, counts)
        if arm == "teacher":
            return
        difference = value - own
        flipped = min(1.0, abs(difference) + 0.04 + 0.12 * (1 - math.exp(-2 * penalty)))
        changed = min(1.0, flipped * 1.6)
        paired = math.sqrt(flipped / task.n) * 1.1
        yield _interval(name, f"{metric}_difference", difference, paired, counts)
        yield _plain(name, f"{metric}_mcnemar", min(1.0, math.exp(-abs(difference) / paired)))
        yield _interval(name, f"{metric}_retention", value / own if own else 0.0, paired / 2)
        if task.chance is not None and own > task.chance:
            margin = (value - task.chance) / (own - task.chance)
            yield _interval(name, f"{metric}_margin", margin, paired / (own - task.chance), counts)
        for kind, part in (("changed", changed), ("flipped", flipped)):
            yield _interval(name, f"{metric}_{kind}", part, math.sqrt(part / task.n), counts)

    def measurements(self, arm: str, seed: int | None, step: int) -> Iterator[Row]:
        if not self.batch_sizes:
            return
        left = self.parameters(arm, step) / self.size
        draw = random.Random(f"efficiency:{arm}:{seed}:{step}")
        # A compact block is two blocks deep: decoding at batch 1 gets slower with each of them.
        deeper = 1 + step / (2 * self.steps) if arm in ("iskd", "best", "one_shot") else left
        for size in self.batch_sizes:
            speed = (1 / deeper if size == 1 else 1 / (0.5 * left + 0.5 * deeper)) * (
                1 + draw.gauss(0, 0.01)
            )
            for name, value in (
                ("prefill", 21_000 * size**0.8 / left**0.8),
                ("decode", 130 * size**0.9 * speed),
                ("memory", (0.5 + 0.4 * left + 0.01 * size) * 1e9),
            ):
                spread = 0.0 if name == "memory" else draw.uniform(0.01, 0.03)
                yield _range(f"{name}_b{size}", value, spread)
                if arm != "teacher":
                    whole = {
                        "prefill": 1 / left**0.8,
                        "decode": speed,
                        "memory": (0.5 + 0.4 * left + 0.01 * size) / (0.9 + 0.01 * size),
                    }
                    yield _range(f"{name}_b{size}_ratio", whole[name], spread)
        if arm != "teacher":
            yield _plain("efficiency", "draft_acceptance", 0.3 + 0.5 * left, 8)
            yield _range("draft_ratio", 0.6 + 0.2 * left, 0.1)
        if seed is not None:
            yield _plain("cost", "device_hours", 0.4 * step * (1 + draw.gauss(0, 0.02)))
            if self.energy:
                yield _plain("cost", "energy", 400_000.0 * step * (1 + draw.gauss(0, 0.03)))
        yield _plain("cost", "evaluation_hours", 0.21 * (1 + draw.gauss(0, 0.02)))


def _plain(task: str, metric: str, value: float, n: int | None = None) -> Row:
    row: Row = {"task": task, "metric": metric, "value": value, "stderr": None}
    return row | {"low": None, "high": None, "n": n, "clusters": None}


def _interval(
    task: str,
    metric: str,
    value: float,
    stderr: float,
    counts: tuple[int | None, int | None] = (None, None),
) -> Row:
    row: Row = {"task": task, "metric": metric, "value": value, "stderr": stderr}
    row |= {"low": value - _Z * stderr, "high": value + _Z * stderr}
    return row | dict(zip(("n", "clusters"), counts, strict=True))


def _range(metric: str, value: float, spread: float) -> Row:
    row = _plain("efficiency", metric, value, 7)
    return row | {"low": value * (1 - spread), "high": value * (1 + 1.3 * spread)}


def make_request(**changes: Any) -> dict[str, Any]:
    """Make a job's request, as a statement has it."""
    return {
        "rule": "make",
        "wildcards": {},
        "parameters": {},
        "seed": 1,
        "inputs": {},
        "code": "c0de",
        "lock": "0" * 64,
    } | changes
