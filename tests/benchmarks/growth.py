"""How time and memory grow: with the corpus, with steps, with the model's size, and with arms.

    python -m tests.benchmarks.growth [--rounds 5]

Each size runs in a process of its own, which tells its peak memory. Corpus preparation is also
compared with `datasets.map`, as scripts for language models have it: tokenize, join, cut.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

FACTORS = (1, 2, 4, 8)
WIDTH, SEQUENCES, STORIES, ARMS = 64, 64, 5_000, 8


def main() -> None:
    """Print a table: what grows, how large, its time and memory, and its time by size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "FACTOR"), help="one, in this process")
    asked = parser.parse_args()
    if asked.run:
        what, factor = asked.run
        print(json.dumps(_WAYS[what](int(factor))))
        return
    print("| What grows | by | size | seconds | seconds by size | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for what in _WAYS:
        least = None
        # What ours is compared with need not be told at every size.
        for factor in FACTORS if what != "datasets.map" else (FACTORS[0], FACTORS[-1]):
            told = [_measured(what, factor) for _ in range(asked.rounds)]
            seconds = statistics.median(one["seconds"] for one in told)
            memory = statistics.median(one["memory"] for one in told)
            size, each = told[0]["size"], seconds / told[0]["size"]
            least = least or each
            line = f"| {what} | {factor} | {size:,} | {seconds:.2f} | {each / least:.2f} |"
            print(line, f"{memory:,.0f} |", flush=True)


def _measured(what: str, factor: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.growth", "--run", what, str(factor)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _timed(run: Callable[[], object], size: float) -> dict[str, float]:
    import resource

    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "memory": memory, "size": size}


def _texts(factor: int) -> list[str]:
    from iskd.data.toyworld import make_toyworld

    world = make_toyworld(
        seed=1, stories=STORIES, heldout_stories=20, cloze_rows=1, continuation_rows=1
    )
    return list(world.train) * factor


def corpus(factor: int) -> dict[str, float]:
    """Tokens from stories, as `prepare_corpus` makes them; the size is in characters."""
    from iskd.data.corpus import story_blocks, train_tokenizer

    texts = _texts(factor)
    tokenizer = train_tokenizer(texts[:1000], 512, 1024)
    return _timed(lambda: story_blocks(texts, tokenizer, 192), sum(map(len, texts)))


def datasets_map(factor: int) -> dict[str, float]:
    """The same by `datasets.map`."""
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
        whole = len(joined) // 192 * 192
        return {"input_ids": [joined[n : n + 192] for n in range(0, whole, 192)]}

    def run() -> object:
        rows = datasets.Dataset.from_dict({"text": texts})
        tokens = rows.map(tokenize, batched=True, remove_columns=["text"])
        return tokens.map(group, batched=True)

    return _timed(run, sum(map(len, texts)))


def steps(factor: int) -> dict[str, float]:
    """A training of more and more steps; the size is in steps."""
    return _trained(WIDTH, SEQUENCES * factor, SEQUENCES * factor / 8)


def model(factor: int) -> dict[str, float]:
    """A training of a larger and larger model; the size is in FLOPs."""
    return _trained(round(WIDTH * 2 * factor**0.5 / 16) * 16, SEQUENCES, None)


def arms(factor: int) -> dict[str, float]:
    """The tables that compare all arms; the size is in arms."""
    from iskd.paper.metrics import csv_text, read_metrics, tidy
    from iskd.paper.significance import significance_table
    from iskd.paper.tables import ablation_table, main_table, save_table
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

    return _timed(run, ARMS * factor)


def _trained(width: int, sequences: int, size: float | None) -> dict[str, float]:
    import logging

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from iskd.training.loop import fine_tune

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    shape = {"n_layer": 4, "n_embd": width, "n_head": 4, "vocab_size": 512, "n_positions": 128}
    decoder = GPT2LMHeadModel(GPT2Config(**shape))
    blocks = torch.randint(512, (sequences, 128), dtype=torch.int32)
    settings = {
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": {"compact": 1e-3, "rest": 1e-4},
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "beta2": 0.999,
        "schedule": "linear",
        "warmup": 0.0,
        "clip": 1.0,
        "precision": "float32",
    }
    history: list[dict[str, Any]] = []
    told = _timed(lambda: history.extend(fine_tune(decoder, blocks, settings, seed=1)), size or 1)
    return told if size else told | {"size": history[-1]["flops"]}


_WAYS: dict[str, Callable[[int], dict[str, float]]] = {
    "corpus": corpus,
    "datasets.map": datasets_map,
    "steps": steps,
    "model": model,
    "arms": arms,
}


if __name__ == "__main__":
    main()
