"""A task's metrics, worked out of the records of its rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iskd.evaluation.catalogue import find_task
from iskd.evaluation.kinds import GOLD, KINDS
from iskd.evaluation.metric import Metric, metric_of


def metrics_of(
    samples: Sequence[Mapping[str, Any]], kind: str, *, stock: bool
) -> dict[str, Metric]:
    """Work a task's metrics out of the records of :class:`iskd.evaluation.harness.TaskResult`.

    Args:
        samples: one record per row.
        kind: a key of KINDS, or lm-eval's name of a task.
        stock: whether it is lm-eval's.
    """
    if stock:
        metrics = {metric: stock_metric(samples, metric) for metric in find_task(kind).metrics}
    else:
        metrics = accuracies(samples, list(KINDS[kind].metrics))
    if GOLD in samples[0].get("sums", {}):
        metrics[GOLD] = stock_metric(samples, GOLD)
    return metrics


def accuracies(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Metric]:
    """Give the share of right answers by metric, over such records."""
    from iskd.evaluation import statistics

    named = [sample["source"] for sample in samples]
    return {
        name: metric_of(
            statistics.proportion([sample["correct"][name] for sample in samples], named)
        )
        for name in names
    }


def stock_metric(samples: Sequence[Mapping[str, Any]], metric: str) -> Metric:
    """Work a metric of lm-eval's out of such records.

    A mean of zeros and ones is an accuracy; of other numbers, a mean. Of sums of log-likelihoods
    and counts it is the perplexity, or bits where the metric is called so.
    """
    from iskd.evaluation import statistics

    named = [sample["source"] for sample in samples]
    if metric in samples[0]["sums"]:
        losses = [-sample["sums"][metric][0] for sample in samples]
        counts = [sample["sums"][metric][1] for sample in samples]
        if metric == GOLD or metric.startswith("bits_per"):
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


def gold_bits(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Give each row's bits for its right option, in units of the rows' mean number of bytes.

    Their mean is the metric :data:`iskd.evaluation.kinds.GOLD`. The bytes are those of the rows, so
    that two models can be compared row by row.
    """
    sums = [sample["sums"][GOLD] for sample in samples]
    unit = math.log(2) * math.fsum(count for _, count in sums) / len(sums)
    return [-log_likelihood / unit for log_likelihood, _ in sums]


def chance_of(samples: Sequence[Mapping[str, Any]]) -> float:
    """Give the accuracy of guessing on these rows: the mean of 1 / number of options."""
    return math.fsum(1 / len(s["log_likelihoods"]) for s in samples) / len(samples)
