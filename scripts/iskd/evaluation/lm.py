"""What joins our models and rows to lm-eval: importing this module takes seconds.

Three things are ours: the rows come from memory instead of the hub, the model tells how many tokens
it scored, and it hands lm-eval one batch after another, so that a killed evaluation can go on after
the last that is kept. The batches are those that lm-eval would make, and all else (prompts,
tokenization, scoring, aggregation) is lm-eval's.
"""

import copy
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from iskd.data.rows import Row
from iskd.errors import UserError
from iskd.evaluation.answers import Scoring
from iskd.evaluation.kinds import Kind
from iskd.evaluation.tasks import cbt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Texts, tokens of the context, tokens of the continuation: as lm-eval hands requests on.
Request = tuple[tuple[str, str], list[int], list[int]]

_OWN_TASKS = Path(cbt.__file__).parent
_LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent


class ScoredAnswer(tuple[float, bool]):
    """lm-eval's answer (log-likelihood, greedy) that also knows its number of scored tokens.

    It unpacks as the pair that lm-eval's own tasks expect; ours ask it for `tokens`.
    """

    tokens: int

    def __new__(cls, answer: tuple[float, bool], tokens: int) -> "ScoredAnswer":
        """Take over lm-eval's answer."""
        scored = super().__new__(cls, answer)
        scored.tokens = tokens
        return scored


class ScoringLM(HFLM):
    """lm-eval's model around one that is already in memory.

    Attributes:
        cut: Requests so far whose context lost tokens on its left to fit into the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        mask: bool = False,
        scoring: Scoring | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: See :func:`iskd.evaluation.harness.evaluate_task`.
            tokenizer: Likewise.
            batch_size: Texts per forward pass.
            mask: Hand the model a mask of ones, as the published code does.
            scoring: Keeps answers, and knows those that were kept before.
        """
        super().__init__(
            pretrained=model,
            # lm-eval sets a padding token; the caller's tokenizer must not change under its hands.
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            # In half precision a sum of log-probabilities would lose most of its digits.
            softmax_dtype="float32",
        )
        self.cut = 0
        self._mask = mask
        self._scoring = scoring or Scoring()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[ScoredAnswer]:
        """Score (context, continuation) requests; see lm-eval's HFLM.

        Raises:
            UserError: A continuation alone is longer than the model can read.
            Interrupted: The process was asked to stop; what was scored is kept.
        """
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not _on_terminal())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[ScoredAnswer]:
        del disable_tqdm  # a bar for each batch would tell nothing; the log says how far it is
        fitted = [self._fit(*request) for request in requests]
        batches = batches_of(fitted, self.batch_size)
        scored = super()._loglikelihood_tokens

        def score(batch: list[int]) -> list[list[Any]]:
            asked = [fitted[index] for index in batch]
            return [list(answer) for answer in scored(asked, True, override_bs)]

        tokens = json.dumps([[context, continuation] for _, context, continuation in fitted])
        answers = self._scoring(batches, score, tokens.encode())
        places = [index for batch in batches for index in batch]
        by_request = dict(zip(places, answers, strict=True))
        return [
            ScoredAnswer(by_request[index], tokens=len(continuation))
            for index, (_, _, continuation) in enumerate(fitted)
        ]

    def _fit(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Request:
        """Cut the context as lm-eval would, without its one warning per request."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"a text to score has {len(continuation)} tokens and the model reads at most "
                f"{self.max_length} ({texts[1][:40].strip()!r}...): remove its row or take a "
                "model with more positions"
            )
        self.cut += len(context) > room
        return texts, context[-room:], continuation

    def _model_call(self, inps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self._mask:
            return self.model(input_ids=inps, attention_mask=torch.ones_like(inps)).logits
        return super()._model_call(inps, **kwargs)


def batches_of(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Put requests into batches as lm-eval does, the longest first.

    Requests that differ in their last token only are answered by one text of the forward pass.

    Args:
        requests: What is to be scored.
        batch_size: Texts per forward pass.

    Returns:
        Per batch, the places of its requests.
    """
    texts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, context, continuation) in enumerate(requests):
        texts[*context, *continuation[:-1]].append(index)

    def longest(indices: list[int]) -> tuple[int, list[int]]:
        # Of one text's requests, lm-eval sorts by the one with the longest continuation.
        _, context, continuation = requests[max(indices, key=lambda i: len(requests[i][2]))]
        return -len(context) - len(continuation), context + continuation

    ordered = sorted(texts.values(), key=longest)
    return [
        [index for indices in ordered[start : start + batch_size] for index in indices]
        for start in range(0, len(ordered), batch_size)
    ]


def run_task(lm: ScoringLM, kind: Kind, rows: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """Let lm-eval evaluate the rows, and return its sample records in the rows' order.

    Each record has one key more than lm-eval's: `choices`, the options' texts as the task has them.
    Nothing is read from the network and nothing is written to the cache of `datasets`.
    """
    # One type per column is all that Arrow takes, and exports differ in the label's.
    docs = [
        {field: str(row[field]) if field == "label" else row[field] for field in kind.fields}
        for row in rows
    ]
    dataset = datasets.Dataset.from_list(docs)
    manager = lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=[_OWN_TASKS, _LM_EVAL_TASKS / "hellaswag"]
    )
    override = {
        "task": kind.name,
        "custom_dataset": lambda **_: {kind.split: dataset},
        # Examples for prompts would come from there, and none are used.
        "training_split": None,
        "num_fewshot": 0,
    }
    # Only as members of a group do registered tasks take overrides.
    task = manager.load([{"group": "iskd", "task": [override]}])["tasks"][kind.name]
    task.set_fewshot_seed(seed)
    # Zero bootstrap rounds leave the standard errors to the caller.
    results = evaluate(lm, {"tasks": {kind.name: task}}, bootstrap_iters=0)
    records = sorted(results["samples"][kind.name], key=lambda record: record["doc_id"])
    return [{**record, "choices": task.doc_to_choice(record["doc"])} for record in records]


def _on_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's notes out of the log, and progress bars out of what is no terminal."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not _on_terminal():
        datasets.disable_progress_bars()
    # No argument reaches this bar; `disable=None` means: draw on terminals only.
    lm_eval.api.task.tqdm = partial(tqdm, disable=None)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = tqdm
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
