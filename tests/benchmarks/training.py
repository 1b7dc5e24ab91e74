"""Tokens per second of a training: ours, and a bare loop of thirty lines.

    python -m tests.benchmarks.training [--rounds 5]

Both train the same model with the same optimiser on the same batches of random tokens. What is
timed is the median step of a run, without its first two, in which memory still grows; what a run
costs besides is shown by itself.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from iskd.models.recipes import resolve_sizes
from iskd.models.substitution import replace_block
from iskd.settings import LearningRates, ObjectiveSettings, TrainingSettings
from iskd.training.flops import count_flops
from iskd.training.loop import fine_tune
from iskd.training.objectives import Mixture, Objective, next_token_loss
from iskd.training.optimizer import make_optimizer, parameter_groups
from tests.benchmarks.timing import begin, spread

SKIPPED = 2
FUSED = "step, fused update"


@dataclass(frozen=True)
class Case:
    """One training: the teacher's shape, and what a step reads."""

    name: str
    shape: dict[str, int]
    batch: int
    length: int
    steps: int
    kinds: tuple[str, ...] = ("pretraining of all weights", "step", FUSED, "step with KL")


CASES = (
    Case(
        "embedded study's teacher",
        {"n_layer": 6, "n_embd": 128, "n_head": 4, "vocab_size": 512, "n_positions": 256},
        batch=8,
        length=192,
        steps=7,
    ),
    Case(
        "6 million parameters",
        {"n_layer": 6, "n_embd": 256, "n_head": 8, "vocab_size": 6000, "n_positions": 256},
        batch=2,
        length=256,
        steps=6,
    ),
    Case(
        "GPT-2 small",
        {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        batch=1,
        length=96,
        steps=6,
        kinds=("step", FUSED, "step with KL"),  # nobody pretrains it on a processor
    ),
)


def main() -> None:
    """Print a table: per case and kind of training, ours against the bare loop."""
    rounds = begin(__doc__)
    peak = matmul_flops()
    print(f"Matrix products of 2,048 rows: {peak / 1e9:.0f} GFLOP/s\n")
    print(
        "| Model | Training | Tokens/s | against the bare loop | of the matrix limit | set-up, s |"
    )
    print("|---|---|---|---|---|---|")
    for case in CASES:
        for line in table(case, rounds, peak):
            print(f"| {case.name} | {line} |", flush=True)


def table(case: Case, rounds: int, peak: float) -> list[str]:
    """Time one case's pretraining, substitution step, and step with KL, all in turn."""
    torch.manual_seed(1)
    config = GPT2Config(**case.shape)
    sequences = torch.randint(case.shape["vocab_size"], (case.batch * case.steps, case.length))
    sequences = sequences.to(torch.int32)
    teacher = GPT2LMHeadModel(config)
    # A teacher in the loss is frozen.
    origin = copy.deepcopy(teacher)
    sizes = resolve_sizes(config)
    weights = ObjectiveSettings(next_token=0.5, kl=0.5, hidden=0.0, temperature=1.0)
    ways: dict[str, tuple[bool, Objective]] = {
        "pretraining of all weights": (False, next_token_loss),
        "step": (True, next_token_loss),
        FUSED: (True, next_token_loss),
        "step with KL": (True, Mixture(weights, teacher)),
    }

    def fresh(substituted: bool) -> tuple[PreTrainedModel, Any]:
        model = copy.deepcopy(origin)
        return replace_block(model, 1, sizes, "paper", 1) if substituted else (model, None)

    ways = {name: way for name, way in ways.items() if name in case.kinds}
    ours: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    bare: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (substituted, objective) in ways.items():
            # What ran before leaves memory behind, so that each goes first in turn.
            for is_ours in (True, False) if number % 2 else (False, True):
                model, new = fresh(substituted)
                settings = replace(settings_of(case), fused=name == FUSED)
                if is_ours:
                    ours[name].append(steps_of_ours(model, new, sequences, settings, objective))
                else:
                    bare[name].append(steps_of_bare(model, new, sequences, settings, objective))
    lines = []
    for name, (substituted, objective) in ways.items():
        seconds = [step for step, _ in ours[name]]
        ratios = [b / a for a, b in zip(seconds, bare[name], strict=True)]
        speed = case.batch * case.length / statistics.median(seconds)
        model, _ = fresh(substituted)
        run = partial(objective, model, {"input_ids": sequences[:1].long()})
        flops = count_flops(run, model.parameters()) / case.length
        setup = statistics.median(other for _, other in ours[name])
        share = f"{flops * speed / peak:.0%}"
        lines.append(f"{name} | {speed:,.0f} | {spread(ratios)} | {share} | {setup:.2f}")
    for name, words in (("step with KL", "a step with KL"), (FUSED, "a step with a fused update")):
        plain, other = ([step for step, _ in ours[kind]] for kind in ("step", name))
        costs = spread(b / a for a, b in zip(plain, other, strict=True))
        lines.append(f"{words}, in steps without | | {costs} | |")
    return lines


def settings_of(case: Case) -> TrainingSettings:
    """Give the settings of a case."""
    return TrainingSettings(
        sequences=case.batch * case.steps,
        batch_size=case.batch,
        epochs=1,
        learning_rate=LearningRates(compact=1e-3, rest=1e-4),
        optimizer="adamw",
        beta2=0.999,
        weight_decay=0.01,
        schedule="linear",
        warmup=0.0,
        clip=1.0,
        precision="float32",
    )


def steps_of_ours(
    model: PreTrainedModel,
    new: Any,
    sequences: torch.Tensor,
    settings: TrainingSettings,
    objective: Objective,
) -> tuple[float, float]:
    """Train as the workflow does.

    Returns:
        seconds per step, and what the run has taken besides its steps
    """
    begun: list[float] = []
    started = time.perf_counter()
    fine_tune(
        model,
        sequences,
        settings,
        seed=1,
        compact=[] if new is None else [new],
        objective=objective,
        on_update=lambda step, steps: begun.append(time.perf_counter()),
    )
    whole = time.perf_counter() - started
    step = _median_step(begun)
    return step, whole - step * len(begun)


def steps_of_bare(
    model: PreTrainedModel,
    new: Any,
    sequences: torch.Tensor,
    settings: TrainingSettings,
    objective: Objective,
) -> float:
    """Train with nothing around it.

    Returns:
        seconds per step
    """
    begun: list[float] = []
    forward: Callable[..., torch.Tensor] = objective if objective is not next_token_loss else _plain
    groups = parameter_groups(model, [] if new is None else [new], settings)
    optimizer = make_optimizer(groups, settings)
    steps = len(sequences) // settings.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / steps)
    model.train()
    for batch in sequences[torch.randperm(len(sequences))].long().split(settings.batch_size):
        begun.append(time.perf_counter())
        loss = forward(model, {"input_ids": batch})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return _median_step(begun)


def _median_step(begun: list[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(begun[SKIPPED:]))


def _plain(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = batch["input_ids"]
    logits = model(ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def matmul_flops() -> float:
    """Measure how many operations per second this machine's matrix products reach."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / statistics.median(seconds)


if __name__ == "__main__":
    main()
