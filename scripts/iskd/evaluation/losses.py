"""From the losses of sequences to a model's: without torch, so that anybody can check them."""

from collections.abc import Mapping, Sequence
from typing import Any

from iskd.evaluation import statistics
from iskd.evaluation.metric import Metric, metric_of

COMPARED = ("kl", "agreement")
"""What is measured beside the loss where there is a teacher."""


def heldout_metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Give the means over sequences, and the perplexity exp(loss).

    The records are those of :func:`iskd.evaluation.heldout.score_sequences`.
    Sequences of one source are no independent draws, nor are the tokens of one sequence: standard
    errors and intervals are over sources (:mod:`iskd.evaluation.statistics`). n is the number of
    sequences.
    """
    sources = [sample["source"] for sample in samples]
    tokens = [sample["tokens"] for sample in samples]
    sums = {
        name: [sample[name] * count for sample, count in zip(samples, tokens, strict=True)]
        for name in ("loss", *COMPARED)
        if name in samples[0]
    }
    estimates = {name: statistics.ratio(total, tokens, sources) for name, total in sums.items()}
    estimates["perplexity"] = statistics.perplexity(sums["loss"], tokens, sources)
    return {name: metric_of(estimate) for name, estimate in estimates.items()}
