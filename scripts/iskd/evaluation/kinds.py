"""What kinds of tasks there are: a registry that needs no torch and no lm-eval to be read.

The config's checks read it at parse time; :mod:`iskd.evaluation.harness` runs what it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from iskd.data.row_kinds import CBT_FIELDS, HELLASWAG_FIELDS

Rule = Literal["sum", "token_mean", "char_mean"]
"""What the log-likelihood of an option is divided by before the highest wins: nothing, the number
of its scored tokens, or the number of its characters."""

GOLD = "gold_bits_per_byte"
"""Bits per byte of the right option, given what stands before it: a smoother measure of a small
model than the share of right choices (Heineman et al. 2025, arXiv 2508.13144). Of all
multiple-choice tasks; a sum of bits over a sum of bytes."""


@dataclass(frozen=True)
class Kind:
    """One kind of multiple-choice task.

    Attributes:
        name: The kind's name, which is also the name of the lm-eval task.
        fields: Fields that every row must have (the hub's schema).
        metrics: Metric name -> the rule by which the option is picked. Each is an accuracy in 0..1.
        headline: The metric to quote when one number is quoted.
        split: Name of the split that lm-eval takes the rows to come from.
    """

    name: str
    fields: tuple[str, ...]
    metrics: Mapping[str, Rule]
    headline: str
    split: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            # Children's Book Test, the question alone: each option is filled in, and the sentence
            # with the highest mean log-likelihood per token wins.
            Kind(
                name="cbt_question",
                fields=CBT_FIELDS,
                metrics=MappingProxyType({"acc": "token_mean", "acc_sum": "sum"}),
                headline="acc",
                split="test",
            ),
            # Children's Book Test with its context sentences: the filled-in question that is
            # most likely after them wins.
            Kind(
                name="cbt_context",
                fields=CBT_FIELDS,
                metrics=MappingProxyType({"acc": "sum", "acc_mean": "token_mean"}),
                headline="acc",
                split="test",
            ),
            # HellaSwag as lm-eval defines it, without examples in the prompt.
            Kind(
                name="hellaswag",
                fields=HELLASWAG_FIELDS,
                metrics=MappingProxyType({"acc": "sum", "acc_norm": "char_mean"}),
                headline="acc_norm",
                split="validation",
            ),
        )
    }
)
"""Every kind by its name."""
