"""One task of :data:`iskd.evaluation.kinds.KINDS`, measured on one model by lm-eval.

Importing this module is cheap; lm-eval and torch are imported when a task is evaluated.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iskd.data.rows import read_rows, sample_indices
from iskd.errors import UserError
from iskd.evaluation.kinds import KINDS, Kind, Rule
from iskd.evaluation.metric import Metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from iskd.training.state import WorkFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskResult:
    """What one model reached on one task.

    Attributes:
        kind: Name of the task kind.
        metrics: Accuracies in 0..1 by the names in the kind's `metrics`.
        chance: Accuracy of guessing on these very rows: the mean of 1 / number of options.
        cut: Number of scored texts whose context was cut on the left to fit into the model.
        samples: Per row, in the file's order, ready for JSON: `index` (the row's place in the file,
            from 0, empty lines not counted), `target` (the right option), `choice` and `correct`
            (both by metric name: the option picked, and whether it is the right one),
            `log_likelihoods` (nats, per option) and `token_counts` (scored tokens, per option).
    """

    kind: str
    metrics: dict[str, Metric]
    chance: float
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
    limit: int | None = None,
    work: "WorkFolder | None" = None,
) -> TaskResult:
    """Evaluate a model on the rows of a file, without examples in the prompt.

    The same inputs give the same numbers. There is nothing random in the scoring; the batch size
    is fixed because a float sum depends on the shape it was computed in. The peak memory is about
    two float32 tensors of batch size x longest text x vocabulary.

    Args:
        model: A causal language model, on the device to use; left in the mode it came in.
        tokenizer: Its tokenizer, with a BOS or EOS token (it stands before a text that has no
            context); left as it is.
        kind: A key of KINDS.
        rows_path: JSONL file that :func:`iskd.data.rows.read_rows` accepts.
        batch_size: Texts per forward pass.
        seed: Seed of the sample drawn under `limit`.
        limit: Score only so many rows, drawn at random from the whole file (never its head).
        work: Where answers are kept, if the evaluation is to survive being killed: it goes on from
            them and ends with the same bits.

    Returns:
        The metrics, with the standard error sqrt(p (1 - p) / (n - 1)) of a mean of zeros and ones
        (lm-eval's mean_stderr), and the record of every row.

    Raises:
        UserError: The kind is unknown, the rows are broken, a number is out of range, the
            tokenizer does not fit, or a text to score is longer than the model can read.
        Interrupted: The process was asked to stop; what was scored is kept.
    """
    rows = read_rows(rows_path, kind)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    _check_tokenizer(model, tokenizer)
    # Seconds of imports, and parsing a config must not pay for them.
    from iskd.evaluation.answers import scoring
    from iskd.evaluation.lm import ScoringLM, quiet, run_task
    from iskd.models.modeling.iskd_blocks import is_published

    indices = sample_indices(len(rows), len(rows) if limit is None else limit, seed)
    log.info("%s: %d rows of %s", kind, len(indices), rows_path)
    was_training = model.training
    try:
        with quiet(), scoring(work, model.device) as opened:
            # The published code asks the CBT with a mask, and HellaSwag, as lm-eval does, without.
            mask = kind.startswith("cbt_") and is_published(model.config)
            lm = ScoringLM(model, tokenizer, batch_size, mask=mask, scoring=opened)
            records = run_task(lm, KINDS[kind], [rows[index] for index in indices], seed)
    finally:
        model.train(was_training)
    if lm.cut:
        log.warning(
            "%s: %d of %d texts were longer than the model's %d tokens; their contexts were "
            "cut on the left",
            kind,
            lm.cut,
            sum(len(record["arguments"]) for record in records),
            lm.max_length,
        )
    samples = [
        _sample(KINDS[kind], index, record) for index, record in zip(indices, records, strict=True)
    ]
    return TaskResult(
        kind=kind,
        metrics={
            name: _accuracy([sample["correct"][name] for sample in samples])
            for name in KINDS[kind].metrics
        },
        chance=math.fsum(1 / len(s["log_likelihoods"]) for s in samples) / len(samples),
        cut=lm.cut,
        samples=samples,
    )


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


def _sample(kind: Kind, index: int, record: dict[str, Any]) -> dict[str, Any]:
    """Turn lm-eval's record of a row into ours.

    Raises:
        RuntimeError: lm-eval's verdict is not the one that the kind's rule gives. Its rules would
            have changed, and the numbers could not be compared with older ones.
    """
    answers = record["filtered_resps"]
    log_likelihoods = [float(answer[0]) for answer in answers]
    token_counts = [int(answer.tokens) for answer in answers]
    choice = {
        name: _pick(rule, log_likelihoods, token_counts, record["choices"])
        for name, rule in kind.metrics.items()
    }
    target = int(record["target"])
    for name, picked in choice.items():
        if float(picked == target) != record[name]:
            raise RuntimeError(f"{kind.name}, row {index}: lm-eval picks otherwise by {name}")
    return {
        "index": index,
        "target": target,
        "choice": choice,
        "correct": {name: picked == target for name, picked in choice.items()},
        "log_likelihoods": log_likelihoods,
        "token_counts": token_counts,
    }


def _pick(
    rule: Rule, log_likelihoods: list[float], token_counts: list[int], texts: list[str]
) -> int:
    """Return the option that the rule picks, the first of several equals."""
    divisors = {
        "sum": [1] * len(texts),
        "token_mean": token_counts,
        "char_mean": [len(text) for text in texts],
    }[rule]
    scores = [ll / divisor for ll, divisor in zip(log_likelihoods, divisors, strict=True)]
    return scores.index(max(scores))


def _accuracy(correct: list[bool]) -> Metric:
    n, value = len(correct), sum(correct) / len(correct)
    stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None
    return Metric(value=value, stderr=stderr, n=n)
