"""What lm-eval records of a task's rows, turned into records of ours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iskd.evaluation.catalogue import MEAN, LmTask
from iskd.evaluation.kinds import GOLD, Kind, Rule

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def own_sample(
    kind: Kind, index: int, record: dict[str, Any], texts: Sequence[str]
) -> dict[str, Any]:
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
        "sums": gold_sums(log_likelihoods[target], texts[target]),
        "log_likelihoods": log_likelihoods,
        "token_counts": token_counts,
    }


def gold_sums(log_likelihood: float, text: str) -> dict[str, list[float]]:
    """Give what a row adds to :data:`iskd.evaluation.kinds.GOLD`: nats, and bytes of the option."""
    return {GOLD: [log_likelihood, max(1, len(text.encode()))]}


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
"""The rules of lm-eval's metrics for options; by its other metrics the option is not known."""


def stock_sample(
    task: "ConfigurableTask", described: LmTask, record: dict[str, Any]
) -> dict[str, Any]:
    """Turn lm-eval's record of a row into ours."""
    answers, texts = record["filtered_resps"], []
    found: dict[str, Any] = {"target": None, "choice": {}, "correct": {}, "scores": {}, "sums": {}}
    is_choice = described.output_type == "multiple_choice"
    if is_choice:
        from iskd.evaluation.lm_task import gold

        texts = task.doc_to_choice(record["doc"])
        found["target"] = gold(task, record["doc"])
        # Where options are scored a second time without their context, these come last.
        answers = answers[: len(texts)]
    has_verdict = is_choice or described.output_type == "loglikelihood"
    log_likelihoods = [float(answer[0] if has_verdict else answer) for answer in answers]
    counts = [int(getattr(answer, "tokens", 0)) for answer in answers]
    if is_choice:
        right = found["target"] if isinstance(found["target"], list) else [found["target"]]
        likeliest = max(right, key=lambda place: float(answers[place][0]))
        # Where beginnings are compared, all of them go on with the same text.
        text = task.doc_to_target(record["doc"]) if task.multiple_input else texts[likeliest]
        found["sums"] |= gold_sums(float(answers[likeliest][0]), str(text))
        found["choice"] = {
            metric: _pick(rule, log_likelihoods, counts, texts)
            for metric, rule in _PICKED_BY.items()
            if metric in described.metrics
        }
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
