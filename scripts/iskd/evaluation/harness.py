"""One task measured on one model by lm-eval: of our own kinds, or any that lm-eval has.

Importing this module is cheap; lm-eval and torch are imported when a task is evaluated.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iskd.data.row_kinds import read_rows
from iskd.data.rows import Row, read_any_rows
from iskd.data.sources import sources
from iskd.errors import UserError
from iskd.evaluation.catalogue import find_task
from iskd.evaluation.kinds import KINDS
from iskd.evaluation.metric import Metric
from iskd.evaluation.records import own_sample, stock_sample
from iskd.evaluation.scores import chance_of, metrics_of

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from iskd.runtime.workdir import WorkFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskResult:
    """What one model reached on one task.

    Attributes:
        kind: Name of the task kind.
        metrics: By name; accuracies in 0..1, perplexities per token, word or byte.
        chance: Accuracy of guessing on these very rows, the mean of 1 / number of options; None
            where there are no options to guess from.
        cut: Number of scored texts whose context was cut on the left to fit into the model.
        samples: Per row, in the file's order, ready for JSON: `index` (the row's place in the file,
            from 0, empty lines not counted), `source` (the passage it comes from, see
            :func:`iskd.data.sources.sources`), `target` (the right option, or several), `choice`
            and `correct` (both by metric name: the option picked, and whether it is right),
            `scores` (by metric name, where they are means of other numbers), `sums` (by metric
            name, where they are quotients of two sums: what the row adds to either),
            `log_likelihoods` (nats, per option) and `token_counts` (scored tokens, per option).
    """

    kind: str
    metrics: dict[str, Metric]
    chance: float | None
    cut: int
    samples: list[dict[str, Any]]


def evaluate_task(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    kind: str,
    rows_path: Path,
    *,
    batch_size: int,
    seed: int,
    work: "WorkFolder | None" = None,
) -> TaskResult:
    """Evaluate a model on the rows of a file, without examples in the prompt.

    The same inputs give the same numbers. There is nothing random in the scoring; the batch size
    is fixed because a float sum depends on the shape it was computed in. A forward pass reads no
    more tokens than batch size x longest text, of texts that begin alike the beginning once
    (:mod:`iskd.evaluation.shared_prefix`), and holds 64 MiB of logits. A model that lm-eval scores
    itself takes about two float32 tensors of batch size x longest text x vocabulary.

    Args:
        model: A causal language model, on the device to use; left in the mode it came in.
        tokenizer: Its tokenizer, with a BOS or EOS token (it stands before a text that has no
            context); left as it is.
        kind: A key of KINDS.
        rows_path: JSONL file that :func:`iskd.data.row_kinds.read_rows` accepts.
        batch_size: Texts per forward pass.
        seed: Seed of lm-eval's own draws.
        work: Where answers are kept, if the evaluation is to survive being killed: it goes on from
            them and ends with the same bits.

    Returns:
        The metrics with standard errors and intervals over the rows' sources (lm-eval's
        mean_stderr where each row is its own), and the record of every row.

    Raises:
        UserError: The kind is unknown, the rows are broken, a number is out of range, the
            tokenizer does not fit, or a text to score is longer than the model can read.
        Interrupted: The process was asked to stop; what was scored is kept.
    """
    rows = read_rows(rows_path, kind)
    log.info("%s: %d rows of %s", kind, len(rows), rows_path)

    def make() -> "ConfigurableTask":
        from iskd.evaluation.lm_task import kind_task

        return kind_task(KINDS[kind], rows, seed)

    asking = _Asking(kind, make, batch_size, work)
    task, records, _, cut = _ask(model, tokenizer, asking)
    samples = [
        {
            "index": index,
            "source": source,
            **own_sample(KINDS[kind], index, record, task.doc_to_choice(record["doc"])),
        }
        for index, (source, record) in enumerate(zip(sources(rows), records, strict=True))
    ]
    return TaskResult(
        kind, metrics_of(samples, kind, stock=False), chance_of(samples), cut, samples
    )


def evaluate_stock_task(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    rows_path: Path,
    *,
    batch_size: int,
    seed: int,
    examples_path: Path | None = None,
    fewshot: int = 0,
    work: "WorkFolder | None" = None,
) -> TaskResult:
    """Evaluate a model on rows of a task as lm-eval has it.

    Args:
        model: As in :func:`evaluate_task`.
        tokenizer: Likewise.
        name: lm-eval's name of the task.
        rows_path: JSONL file of rows in the schema of the task's data set.
        batch_size: Texts per forward pass.
        seed: Seed of the draw of examples.
        examples_path: JSONL file of rows that examples are drawn from.
        fewshot: Examples in each prompt.
        work: As in :func:`evaluate_task`.

    Raises:
        UserError: As :func:`evaluate_task`; or lm-eval has no such task, or it cannot be run here.
        RuntimeError: lm-eval's own number is not the one worked out from its records.
        Interrupted: The process was asked to stop; what was scored is kept.
    """
    described = find_task(name)
    rows = read_any_rows(rows_path)
    examples = read_any_rows(examples_path) if examples_path and fewshot else []
    log.info("%s: %d rows of %s, %d examples in the prompt", name, len(rows), rows_path, fewshot)

    def make() -> "ConfigurableTask":
        from iskd.evaluation.lm_task import stock_task

        return stock_task(described, rows, examples=examples, fewshot=fewshot, seed=seed)

    asking = _Asking(name, make, batch_size, work)
    task, records, numbers, cut = _ask(model, tokenizer, asking)
    named = sources([record["doc"] for record in records])
    samples = [
        {"index": int(record["doc_id"]), "source": source, **stock_sample(task, described, record)}
        for record, source in zip(records, named, strict=True)
    ]
    metrics = metrics_of(samples, name, stock=True)
    for metric in described.metrics:
        found = metrics[metric]
        if not math.isclose(found.value, numbers[metric], rel_tol=1e-9, abs_tol=1e-12):
            raise RuntimeError(f"{name}: lm-eval works out {metric} otherwise")
    chance = chance_of(samples) if described.output_type == "multiple_choice" else None
    return TaskResult(name, metrics, chance, cut, samples)


@dataclass(frozen=True)
class _Asking:
    """The rows that a model is scored on, and how."""

    name: str
    make: Callable[[], "ConfigurableTask"]
    batch_size: int
    work: "WorkFolder | None"


def _ask(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", asking: _Asking
) -> tuple["ConfigurableTask", list[Row], dict[str, float], int]:
    """Let lm-eval ask a task: the task, its records and numbers, and how many contexts were cut."""
    name, batch_size = asking.name, asking.batch_size
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    _check_tokenizer(model, tokenizer)
    # Seconds of imports, and parsing a config must not pay for them.
    from iskd.evaluation.answers import scoring
    from iskd.evaluation.lm import ScoringLM
    from iskd.evaluation.lm_task import quiet, run_task
    from iskd.models.modeling.iskd_blocks import is_published

    was_training = model.training
    try:
        with quiet(), scoring(asking.work, model.device) as opened:
            task = asking.make()
            # The published code asks the CBT with a mask, and HellaSwag, as lm-eval does, without.
            mask = name.startswith("cbt_") and is_published(model.config)
            lm = ScoringLM(model, tokenizer, batch_size, mask=mask, scoring=opened)
            records, numbers = run_task(lm, name, task)
    finally:
        model.train(was_training)
    if lm.cut:
        log.warning(
            "%s: %d of %d texts were longer than the model's %d tokens; their contexts were "
            "cut on the left",
            name,
            lm.cut,
            sum(len(record["arguments"]) for record in records),
            lm.max_length,
        )
    return task, records, numbers, lm.cut


def _check_tokenizer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has neither a BOS nor an EOS token: set one, "
            "it stands before texts without context"
        )
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} tokens and the model "
            f"{model.name_or_path!r} {known}: give the model its own tokenizer"
        )
