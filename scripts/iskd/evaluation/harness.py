"""One task measured on one model by lm-eval: of our own kinds, or any that lm-eval has.

Importing this module is cheap; lm-eval and torch are imported when a task is evaluated.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iskd.data.row_kinds import read_rows
from iskd.data.rows import Row, read_any_rows
from iskd.data.sources import sources
from iskd.errors import UserError
from iskd.evaluation.catalogue import MEAN, LmTask, find_task
from iskd.evaluation.kinds import KINDS, Kind, Rule
from iskd.evaluation.metric import Metric, metric_of

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
            **_sample(KINDS[kind], index, record, task.doc_to_choice(record["doc"])),
        }
        for index, (source, record) in enumerate(zip(sources(rows), records, strict=True))
    ]
    return TaskResult(kind, metrics_of(samples, kind, stock=False), _chance(samples), cut, samples)


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
        {"index": int(record["doc_id"]), "source": source, **_stock_sample(task, described, record)}
        for record, source in zip(records, named, strict=True)
    ]
    metrics = metrics_of(samples, name, stock=True)
    for metric, found in metrics.items():
        if not math.isclose(found.value, numbers[metric], rel_tol=1e-9, abs_tol=1e-12):
            raise RuntimeError(f"{name}: lm-eval works out {metric} otherwise")
    chance = _chance(samples) if described.output_type == "multiple_choice" else None
    return TaskResult(name, metrics, chance, cut, samples)


@dataclass(frozen=True)
class _Asking:
    """What is asked of a model, and how."""

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


def _sample(kind: Kind, index: int, record: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Turn lm-eval's record of a row into ours.

    Raises:
        RuntimeError: lm-eval's verdict is not the one that the kind's rule gives. Its rules would
            have changed, and the numbers could not be compared with older ones.
    """
    answers = record["filtered_resps"]
    log_likelihoods = [float(answer[0]) for answer in answers]
    token_counts = [int(answer.tokens) for answer in answers]
    choice = {
        name: _pick(rule, log_likelihoods, token_counts, texts)
        for name, rule in kind.metrics.items()
    }
    target = int(record["target"])
    for name, picked in choice.items():
        if float(picked == target) != record[name]:
            raise RuntimeError(f"{kind.name}, row {index}: lm-eval picks otherwise by {name}")
    return {
        "target": target,
        "choice": choice,
        "correct": {name: picked == target for name, picked in choice.items()},
        "log_likelihoods": log_likelihoods,
        "token_counts": token_counts,
    }


def _pick(
    rule: Rule, log_likelihoods: list[float], token_counts: list[int], texts: Sequence[str]
) -> int:
    """Return the option that the rule picks, the first of several equals."""
    divisors = {
        "sum": [1] * len(texts),
        "token_mean": token_counts,
        "char_mean": [len(text) for text in texts],
    }[rule]
    scores = [ll / divisor for ll, divisor in zip(log_likelihoods, divisors, strict=True)]
    return scores.index(max(scores))


_PICKED_BY: dict[str, Rule] = {"acc": "sum", "acc_norm": "char_mean"}
"""The rules of lm-eval's metrics for options; by its other metrics the option is not told."""


def _stock_sample(
    task: "ConfigurableTask", described: LmTask, record: dict[str, Any]
) -> dict[str, Any]:
    """Turn lm-eval's record of a row into ours."""
    answers = record["filtered_resps"]
    found: dict[str, Any] = {"target": None, "choice": {}, "correct": {}, "scores": {}, "sums": {}}
    if described.output_type == "multiple_choice":
        from iskd.evaluation.lm_task import gold

        texts = task.doc_to_choice(record["doc"])
        found["target"] = gold(task, record["doc"])
        # Where options are scored a second time without their context, these come last.
        answers = answers[: len(texts)]
        log_likelihoods = [float(answer[0]) for answer in answers]
        counts = [int(getattr(answer, "tokens", 0)) for answer in answers]
        found["choice"] = {
            metric: _pick(rule, log_likelihoods, counts, texts)
            for metric, rule in _PICKED_BY.items()
            if metric in described.metrics
        }
    elif described.output_type == "loglikelihood":
        log_likelihoods = [float(answer[0]) for answer in answers]
        counts = [int(getattr(answer, "tokens", 0)) for answer in answers]
    else:
        log_likelihoods = [float(answer) for answer in answers]
        counts = [int(getattr(answer, "tokens", 0)) for answer in answers]
    for metric, aggregation in described.metrics.items():
        value = record[metric]
        if aggregation == MEAN:
            kind = "correct" if float(value) in (0.0, 1.0) else "scores"
            found[kind][metric] = bool(value) if kind == "correct" else float(value)
        elif aggregation == "perplexity":
            found["sums"][metric] = [float(value), 1]
        else:
            found["sums"][metric] = [float(value[0]), int(value[1])]
    return found | {"log_likelihoods": log_likelihoods, "token_counts": counts}


def metrics_of(
    samples: Sequence[Mapping[str, Any]], kind: str, *, stock: bool
) -> dict[str, Metric]:
    """Work a task's metrics out of the records of :class:`TaskResult`.

    Args:
        samples: one record per row.
        kind: a key of KINDS, or lm-eval's name of a task.
        stock: whether it is lm-eval's.
    """
    if stock:
        return {metric: stock_metric(samples, metric) for metric in find_task(kind).metrics}
    return accuracies(samples, list(KINDS[kind].metrics))


def accuracies(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Metric]:
    """Give the share of right answers by metric, over the records of :class:`TaskResult`."""
    from iskd.evaluation import statistics

    named = [sample["source"] for sample in samples]
    return {
        name: metric_of(
            statistics.proportion([sample["correct"][name] for sample in samples], named)
        )
        for name in names
    }


def stock_metric(samples: Sequence[Mapping[str, Any]], metric: str) -> Metric:
    """Work a metric of lm-eval's out of the records of :class:`TaskResult`.

    A mean of zeros and ones is an accuracy; of other numbers, a mean. Of sums of log-likelihoods
    and counts it is the perplexity, or bits where the metric is called so.
    """
    from iskd.evaluation import statistics

    named = [sample["source"] for sample in samples]
    if metric in samples[0]["sums"]:
        losses = [-sample["sums"][metric][0] for sample in samples]
        counts = [sample["sums"][metric][1] for sample in samples]
        if metric.startswith("bits_per"):
            bits = [loss / math.log(2) for loss in losses]
            return metric_of(statistics.ratio(bits, counts, named))
        return metric_of(statistics.perplexity(losses, counts, named))
    if all(metric in sample["correct"] for sample in samples):
        return accuracies(samples, [metric])[metric]
    return metric_of(statistics.mean([score_of(s, metric) for s in samples], named))


def score_of(sample: Mapping[str, Any], metric: str) -> float:
    """Give what a row adds to a mean: 0 or 1 for an accuracy."""
    found = sample["correct"].get(metric)
    return float(sample["scores"][metric] if found is None else found)


def _chance(samples: Sequence[Mapping[str, Any]]) -> float:
    return math.fsum(1 / len(s["log_likelihoods"]) for s in samples) / len(samples)
