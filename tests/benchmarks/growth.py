"""How time and memory grow: with the corpus, with steps, with the model's size, and with arms.

    python -m tests.benchmarks.growth [--rounds 5]

Each size runs in a process of its own, which tells its peak memory, as often as there are rounds.
Corpus preparation is also compared with `datasets.map`, as scripts for language models have it:
tokenize, join, cut.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from iskd.runtime.process import set_environment
from iskd.settings import LearningRates, TrainingSettings
from tests.benchmarks.timing import spread

FACTORS = (1, 2, 4, 8)
COMPARED = "datasets.map"
WIDTH, SEQUENCES, STORIES, ARMS, LENGTH = 64, 32, 2_500, 4, 192


def main() -> None:
    """Print a table of what grows, and how corpus preparation compares with `datasets.map`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "FACTOR"), help="one, in this process")
    args = parser.parse_args()
    if args.run:
        what, factor = args.run
        print(json.dumps(_measured(_WAYS[what](int(factor)), args.rounds)))
        return
    print("| What grows | by | size | seconds | in the smallest's, by size | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for what in (way for way in _WAYS if way != COMPARED):
        least: list[float] = []
        for factor in FACTORS:
            measured = _in_a_process(what, factor, args.rounds)
            each = [seconds / measured["size"] for seconds in measured["seconds"]]
            least = least or each
            line = (
                f"| {what} | {factor} | {measured['size']:,.0f} | {spread(measured['seconds'])} |"
            )
            ratios = spread(a / b for a, b in zip(each, least, strict=True))
            print(line, f"{ratios} | {measured['memory']:,.0f} |", flush=True)
    print("\n| Corpus preparation, MB/s | against datasets.map |")
    print("|---|---|")
    measured = _in_a_process(COMPARED, 1, args.rounds)
    speed = spread(measured["size"] / seconds / 1e6 for seconds in measured["seconds"])
    ratios = spread(b / a for a, b in zip(measured["seconds"], measured["other"], strict=True))
    print(f"| {speed} | {ratios} |")


def _in_a_process(what: str, factor: int, rounds: int) -> dict[str, Any]:
    command = ["-m", "tests.benchmarks.growth", "--run", what, str(factor)]
    done = subprocess.run(
        [sys.executable, *command, "--rounds", str(rounds)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        run: does it once.
        size: called afterwards.
        other: does the same in another way, in turn.
    """

    run: Callable[[], object]
    size: Callable[[], float]
    other: Callable[[], object] | None = None


def _measured(work: Work, rounds: int) -> dict[str, Any]:
    import resource

    set_environment(1, network=False)
    seconds = []
    other = []
    for _ in range(rounds):
        seconds.append(_seconds(work.run))
        if work.other:
            other.append(_seconds(work.other))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "memory": memory, "size": work.size(), "other": other}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _texts(factor: int) -> list[str]:
    from iskd.data.toyworld import make_toyworld

    world = make_toyworld(
        seed=1, stories=STORIES, heldout_stories=20, cloze_rows=1, continuation_rows=1
    )
    return list(world.train) * factor


def corpus(factor: int) -> Work:
    """Tokens from stories, as `prepare_corpus` makes them; the size is in characters."""
    from iskd.data.corpus import story_sequences, train_tokenizer

    texts = _texts(factor)
    tokenizer = train_tokenizer(texts[:1000], 512, 1024)
    return Work(lambda: story_sequences(texts, tokenizer, LENGTH), lambda: sum(map(len, texts)))


def datasets_map(factor: int) -> Work:
    """The same, and by `datasets.map`."""
    import datasets

    from iskd.data.corpus import train_tokenizer

    datasets.disable_progress_bars()
    texts = _texts(factor)
    tokenizer = train_tokenizer(texts[:1000], 512, 1024)

    def tokenize(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(rows["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [[*own, tokenizer.eos_token_id] for own in ids]}

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(chain.from_iterable(rows["input_ids"]))
        whole = len(joined) // LENGTH * LENGTH
        return {"input_ids": [joined[n : n + LENGTH] for n in range(0, whole, LENGTH)]}

    def mapped() -> object:
        rows = datasets.Dataset.from_dict({"text": texts})
        tokens = rows.map(tokenize, batched=True, remove_columns=["text"])
        return tokens.map(group, batched=True)

    return replace(corpus(factor), other=mapped)


def steps(factor: int) -> Work:
    """A training of more and more steps; the size is in steps."""
    return _trained(WIDTH, SEQUENCES * factor, SEQUENCES * factor / 8)


def model(factor: int) -> Work:
    """A training of a larger and larger model; the size is in FLOPs."""
    return _trained(round(WIDTH * 2 * factor**0.5 / 16) * 16, SEQUENCES, None)


def arms(factor: int) -> Work:
    """The tables that compare all arms; the size is in arms."""
    from iskd.paper.ablation_table import ablation_table
    from iskd.paper.csv_text import csv_text
    from iskd.paper.main_table import main_table
    from iskd.paper.metrics import read_metrics, tidy
    from iskd.paper.significance import significance_table
    from iskd.paper.tables import save_table
    from tests.unit.synthetic import GPT2_TASKS, chance_of, headline_of, make_metrics, some_arms

    rows, _ = make_metrics(some_arms(ARMS * factor))
    headline = headline_of(GPT2_TASKS)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "metrics.csv")
            path.write_text(csv_text(tidy(rows)), encoding="utf-8")
            metrics = read_metrics(path)
            main = main_table(metrics, headline, chance_of(GPT2_TASKS))
            save_table(main, Path(folder, "main"), "All arms.", "tab:main")
            significance_table(metrics, headline)
            ablation_table(metrics, headline, None)

    return Work(run, lambda: ARMS * factor)


def _trained(width: int, number: int, size: float | None) -> Work:
    import logging

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from iskd.training.loop import fine_tune

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    shape = {"n_layer": 4, "n_embd": width, "n_head": 4, "vocab_size": 512, "n_positions": 128}
    decoder = GPT2LMHeadModel(GPT2Config(**shape))
    sequences = torch.randint(512, (number, 128), dtype=torch.int32)
    settings = TrainingSettings(
        epochs=1,
        batch_size=8,
        learning_rate=LearningRates(compact=1e-3, rest=1e-4),
        optimizer="adamw",
        weight_decay=0.0,
        beta2=0.999,
        schedule="linear",
        warmup=0.0,
        clip=1.0,
        precision="float32",
    )
    history: list[dict[str, Any]] = []
    return Work(
        lambda: history.extend(fine_tune(decoder, sequences, settings, seed=1)),
        lambda: size or history[-1]["flops"],
    )


_WAYS: dict[str, Callable[[int], Work]] = {
    "corpus": corpus,
    COMPARED: datasets_map,
    "steps": steps,
    "model": model,
    "arms": arms,
}


if __name__ == "__main__":
    main()
