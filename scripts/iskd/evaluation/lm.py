"""What joins our models and rows to lm-eval: importing this module takes seconds.

Two things are ours: the rows come from memory instead of the hub, and the model tells how many
tokens it scored. All else (prompts, tokenization, batching, scoring, aggregation) is lm-eval's.
"""

import copy
import logging
import sys
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
from iskd.evaluation.kinds import Kind
from iskd.evaluation.tasks import cbt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_OWN_TASKS = Path(cbt.__file__).parent
_LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
_REPORTS = 10
"""How often progress is logged in one evaluation where no progress bar can be drawn."""


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
    ) -> None:
        """Wrap a model; with ``mask`` it is handed a mask of ones, as the published code does."""
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
        self._passed = 0
        self._total = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[ScoredAnswer]:
        """Score (context, continuation) requests; see lm-eval's HFLM.

        Raises:
            UserError: A continuation alone is longer than the model can read.
        """
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not _on_terminal())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[ScoredAnswer]:
        fitted = [self._fit(*request) for request in requests]
        self._passed, self._total = 0, len(requests)
        answers = super()._loglikelihood_tokens(fitted, disable_tqdm, override_bs)
        return [
            ScoredAnswer(answer, tokens=len(continuation))
            for answer, (_, _, continuation) in zip(answers, fitted, strict=True)
        ]

    def _fit(
        self, texts: tuple[str, str], context: list[int], continuation: list[int]
    ) -> tuple[tuple[str, str], list[int], list[int]]:
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
            logits = self.model(input_ids=inps, attention_mask=torch.ones_like(inps)).logits
        else:
            logits = super()._model_call(inps, **kwargs)
        before, self._passed = self._passed, self._passed + len(inps)
        if before * _REPORTS // self._total != self._passed * _REPORTS // self._total:
            log.info("%d of %d texts scored", self._passed, self._total)
        return logits


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
