"""Speed of compressed models against their teacher: every recipe, 30 % and 50 % smaller.

    python -m tests.benchmarks.compressed [--rounds 5]

Measured by what the workflow measures with: the teacher and all models made of it in turn, prompts
read (prefill), then tokens written one after the other with a KV cache (decode). Weights are
random. As many blocks are replaced, from the second on, as blocks of the recipe's own size would
need; then their sizes are fitted to the reduction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, PreTrainedModel

from iskd.evaluation.efficiency import (
    DECODE,
    MODEL,
    PREFILL,
    TEACHER,
    Load,
    measure_speed,
    summarise,
)
from iskd.evaluation.metric import Metric
from iskd.models.recipes import Recipe, block_parameters, parameter_count, resolve_sizes
from iskd.models.substitution import compact_config
from tests.benchmarks.evaluation import SHAPES
from tests.benchmarks.timing import begin

REDUCTIONS = (0.3, 0.5)
BATCH_SIZES = (1, 32)


def main() -> None:
    """Print a table: per shape, recipe and reduction, the model's speed in the teacher's."""
    rounds = begin(__doc__)
    load = Load(BATCH_SIZES, prompt_tokens=32, new_tokens=8, repeats=rounds, warmup=1, seed=1)
    phases = [f"{phase}_b{size}" for phase in (PREFILL, DECODE) for size in BATCH_SIZES]
    print("| Model | Recipe | Smaller by | Blocks |", *(f" {phase} |" for phase in phases), sep="")
    print("|---" * (4 + len(phases)) + "|")
    for shape, sizes in SHAPES.items():
        config = GPT2Config(n_positions=1024, **sizes)
        models = {TEACHER: fresh(config)}
        for reduction in REDUCTIONS:
            for recipe in get_args(Recipe):
                small = compressed(config, recipe, reduction)
                models[f"{recipe}, {reduction}"] = fresh(small)
        records = [r for size in BATCH_SIZES for r in measure_speed(models, load, size)]
        teacher = models.pop(TEACHER)
        for name, model in models.items():
            found = against_teacher(records, name)
            measured = [found[f"{phase}_ratio"] for phase in phases]
            ratios = [f"{m.value:.2f} ({m.low:.2f} to {m.high:.2f})" for m in measured]
            exact = 1 - model.num_parameters() / teacher.num_parameters()
            blocks = (model.config.compact_blocks or (), model.config.narrow_blocks or ())
            many = sum(map(len, blocks))
            recipe, _ = name.split(", ")
            first = f"| {shape} | {recipe} | {exact:.1%} | {many} of {sizes['n_layer']} |"
            print(first, *(f" {ratio} |" for ratio in ratios), sep="", flush=True)


def against_teacher(records: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Metric]:
    """Summarise one model's records beside the teacher's."""
    names = {TEACHER: TEACHER, name: MODEL}
    return summarise([{**r, "who": names[r["who"]]} for r in records if r["who"] in names])[MODEL]


def fresh(config: PreTrainedConfig) -> PreTrainedModel:
    """Draw a model."""
    torch.manual_seed(1)
    return cast("PreTrainedModel", AutoModelForCausalLM.from_config(config).eval())


def compressed(config: PreTrainedConfig, recipe: Recipe, reduction: float) -> PreTrainedConfig:
    """Give the config of a model that is smaller by so much."""
    own = resolve_sizes(config, recipe)
    saved = block_parameters(config, None) - block_parameters(config, own)
    most = config.num_hidden_layers
    many = min(most, math.ceil(reduction * parameter_count(config) / saved))
    sizes = resolve_sizes(config, recipe, replaced=many, reduction=reduction)
    indices = [(1 + number) % most for number in range(many)]
    return compact_config(config, sorted(indices), sizes)


if __name__ == "__main__":
    main()
