"""Rows per second of an evaluation: ours, lm-eval's own model, and the published code's way.

    python -m tests.benchmarks.evaluation [--rounds 5]

The same rows and models, timed in turn in one process; ratios are of rows per second. The published
way is one option at a time, with a mask of ones. Weights are random: what is timed does not depend
on them. Choices must be the same, scores within 1e-4.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from iskd.data.cloze import cloze_rows
from iskd.data.corpus import train_tokenizer
from iskd.data.row_kinds import read_rows
from iskd.data.rows import Row
from iskd.data.texts import read_texts
from iskd.data.toyworld import make_toyworld
from iskd.evaluation.kinds import KINDS
from iskd.evaluation.lm import ScoredAnswer, ScoringLM
from iskd.evaluation.lm_task import kind_task, quiet, run_task
from tests.benchmarks.timing import begin

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

BATCH_SIZE = 16
ROWS = {"6 million parameters": 12, "GPT-2 small": 2}
QUESTIONS = {"6 million parameters": 120, "GPT-2 small": 8}
"""Rows of the form without context, where a row takes milliseconds."""
SHAPES: dict[str, dict[str, int]] = {
    "6 million parameters": {"n_layer": 6, "n_embd": 256, "n_head": 8, "vocab_size": 6000},
    "GPT-2 small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
}
Scores = dict[int, list[float]]


class Stock(HFLM):
    """lm-eval's own model; it only tells as well how many tokens it has scored."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[ScoredAnswer]:
        """Score as lm-eval does, without its bar."""
        del disable_tqdm
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *given: Any, **named: Any) -> list[ScoredAnswer]:
        answers = super()._loglikelihood_tokens(requests, *given, **named)
        pairs = zip(answers, requests, strict=True)
        return [ScoredAnswer(answer, len(request[2])) for answer, request in pairs]


def main() -> None:
    """Time each kind of task on each shape, and print a table."""
    rounds = begin(__doc__)
    texts, rows = material()
    tokenizer = train_tokenizer(texts, 6000, 1024)
    print("| Model | Task | Rows/s | against lm-eval's | against one at a time |")
    print("|---|---|---|---|---|")
    for shape, sizes in SHAPES.items():
        torch.manual_seed(1)
        model = GPT2LMHeadModel(GPT2Config(n_positions=1024, **sizes)).eval()
        for kind, examples in rows.items():
            number = (QUESTIONS if kind == "cbt_question" else ROWS)[shape]
            line = compare(model, tokenizer, kind, examples[:number], rounds)
            print(f"| {shape} | {kind} | {line} |", flush=True)


def material() -> tuple[list[str], dict[str, list[Row]]]:
    """Give stories and rows: real ones where ``ISKD_REAL_DATA`` names them, else our own."""
    most = max(*ROWS.values(), *QUESTIONS.values())
    folder = os.environ.get("ISKD_REAL_DATA")
    if folder is None:
        world = make_toyworld(
            seed=1,
            stories=400,
            heldout_stories=most,
            cloze_rows=most,
            continuation_rows=most,
        )
        cbt, hellaswag, texts = list(world.cbt), list(world.hellaswag), list(world.train)
    else:
        texts = read_texts(Path(folder, "tinystories.jsonl"))
        cbt = cloze_rows(texts, most, 1)
        hellaswag = read_rows(Path(folder, "hellaswag_validation.jsonl"), "hellaswag")
    return texts, {"cbt_question": cbt, "cbt_context": cbt, "hellaswag": hellaswag}


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    rows: Sequence[Row],
    rounds: int,
) -> str:
    """Time three ways in turn; give ours in rows per second, and the ratios to the others."""
    run = partial(through, kind=kind, rows=rows)
    stock: Callable[[], LM] = lambda: Stock(  # noqa: E731
        pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE, softmax_dtype="float32"
    )
    ways: dict[str, Callable[[], Scores]] = {
        "ours": lambda: run(lambda: ScoringLM(model, tokenizer, BATCH_SIZE)),
        "stock": lambda: run(stock),
        "one": lambda: one_at_a_time(model, stock(), kind, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        scores: dict[str, Scores] = {}
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - started)
        check_same(scores)
    rate = len(rows) / statistics.median(seconds["ours"])
    return f"{rate:.1f} | {_ratio(seconds, 'stock')} | {_ratio(seconds, 'one')}"


def _ratio(seconds: dict[str, list[float]], name: str) -> str:
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
    return f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"


def through(make: "Callable[[], LM]", kind: str, rows: Sequence[Row]) -> Scores:
    """Evaluate as lm-eval does, tokenization and metrics included."""
    with quiet():
        records, _ = run_task(make(), kind, kind_task(KINDS[kind], rows, 1))
    return {r["doc_id"]: [float(answer[0]) for answer in r["filtered_resps"]] for r in records}


@torch.inference_mode()
def one_at_a_time(model: PreTrainedModel, lm: Any, kind: str, rows: Sequence[Row]) -> Scores:
    """Score one text after the other, as the published code does."""
    with quiet():
        task: ConfigurableTask = kind_task(KINDS[kind], rows, 1)
        task.build_all_requests()
    scores: Scores = {}
    for request in task.instances:
        context, text = request.args
        if context:
            given, own = lm._encode_pair(context, text)
        else:
            given, own = [lm.prefix_token_id], lm.tok_encode(text, add_special_tokens=False)
        tokens = torch.tensor([(given + own)[-1025:]])
        logits = (
            model(tokens[:, :-1], attention_mask=torch.ones_like(tokens[:, :-1]))
            .logits[0, -len(own) :]
            .float()
        )
        scored = logits.log_softmax(-1)[torch.arange(len(own)), tokens[0, -len(own) :]]
        scores.setdefault(request.doc_id, []).append(float(scored.sum()))
    return scores


def check_same(scores: dict[str, Scores]) -> None:
    """Compare choices and scores.

    Raises:
        AssertionError: they differ.
    """
    for name in ("stock", "one"):
        for row, found in scores["ours"].items():
            other = scores[name][row]
            assert found.index(max(found)) == other.index(max(other)), (name, row)
            gaps = [abs(a - b) for a, b in zip(found, other, strict=True)]
            assert max(gaps) < 1e-4 * max(1.0, *map(abs, found)), (name, row, max(gaps))


if __name__ == "__main__":
    main()
