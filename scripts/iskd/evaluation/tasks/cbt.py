"""The functions that the Children's Book Test's YAML files name.

lm-eval loads this file by its path, with or without the rest of ISKD installed; hence no import
from `iskd` here. From lm-eval's own command line, in a clone:

    lm-eval run --model hf --model_args pretrained=MODEL --tasks cbt_question \
        --include_path scripts/iskd/evaluation/tasks --metadata '{"rows": "rows.jsonl"}'

Without `rows` the hub's cam-cst/cbt is loaded (config CN, split test).

Rows have the hub's fields: `sentences` (list of str), `question` (str with XXXXX), `answer` (str),
`options` (list of str). Texts are taken as they are, with the corpus's own spaced punctuation.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Doc = Mapping[str, Any]
Answer = tuple[float, bool]


def filled_questions(doc: Doc) -> list[str]:
    """Return the question once per option, in the options' order, with the option filled in."""
    return [doc["question"].replace("XXXXX", option) for option in doc["options"]]


def nothing(doc: Doc) -> str:
    """Return no context; lm-eval would compile an empty template for every row anew."""
    del doc
    return ""


def context(doc: Doc) -> str:
    """Return the sentences before the question, joined by single spaces."""
    return " ".join(doc["sentences"])


def target(doc: Doc) -> int:
    """Return the position of the answer among the options."""
    return int(doc["options"].index(doc["answer"]))


def score_question(doc: Doc, results: Sequence[Answer]) -> dict[str, float]:
    """Score one row; `acc` by mean log-likelihood per token (the paper's rule).

    Raises:
        ValueError: The numbers of scored tokens are not known, see :func:`load`.
    """
    return {"acc": _mean_right(doc, results), "acc_sum": _sum_right(doc, results)}


def score_context(doc: Doc, results: Sequence[Answer]) -> dict[str, float]:
    """Score one row; `acc` by log-likelihood, `acc_mean` by its mean per token.

    Raises:
        ValueError: The numbers of scored tokens are not known, see :func:`load`.
    """
    return {"acc": _sum_right(doc, results), "acc_mean": _mean_right(doc, results)}


def _sum_right(doc: Doc, results: Sequence[Answer]) -> float:
    return _right(doc, [log_likelihood for log_likelihood, _ in results])


def _mean_right(doc: Doc, results: Sequence[Answer]) -> float:
    counts = token_counts(doc, results)
    return _right(doc, [ll / count for (ll, _), count in zip(results, counts, strict=True)])


def _right(doc: Doc, scores: list[float]) -> float:
    """Return 1.0 if the first of the highest scores is the answer's, else 0.0."""
    return float(scores.index(max(scores)) == target(doc))


def token_counts(doc: Doc, results: Sequence[Answer]) -> list[int]:
    """Return how many tokens of each option's text were scored.

    lm-eval's models answer with (log-likelihood, greedy) and no count. ISKD's own model hands on
    the exact count as the attribute `tokens` of each answer; for any other model the counts were
    made by :func:`load`.

    Raises:
        ValueError: Neither is there.
    """
    counts = [getattr(result, "tokens", None) for result in results]
    if None not in counts:
        return [int(count) for count in counts if count is not None]
    if "token_counts" not in doc:
        raise ValueError(
            "the mean log-likelihood per token needs token counts, and this model reports none: "
            'name its tokenizer, --metadata \'{"tokenizer": "NAME_OR_FOLDER"}\''
        )
    return list(doc["token_counts"])


def load(
    *,
    path: str,
    name: str,
    split: str,
    with_context: bool,
    rows: str | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    **_metadata: object,
) -> dict[str, Any]:
    """Load the rows for lm-eval, which calls this with the YAML's `dataset_kwargs` and metadata.

    Args:
        path: Data set on the hub, used where `rows` is not given.
        name: Its config.
        split: Its split, and the split's name for lm-eval.
        with_context: Whether the context is read by the model (only the token counts ask).
        rows: JSONL file with rows in the hub's schema, instead of the hub. It is read into memory:
            nothing is written to the cache of `datasets`.
        tokenizer: Name or folder of the tokenizer that counts tokens. Without it, `pretrained`,
            which lm-eval's command line copies from `--model_args`.
        pretrained: See `tokenizer`.

    Returns:
        {split: Dataset}, with a column `token_counts` where a tokenizer was named. These counts
        equal those of HFLM as long as it adds no BOS token to a text by itself
        (`add_bos_token=True` shifts both ends alike, and is fine too).
    """
    import datasets

    if rows is None:
        dataset = datasets.load_dataset(path, name, split=split)
    else:
        with Path(rows).open(encoding="utf-8") as lines:
            dataset = datasets.Dataset.from_list([json.loads(line) for line in lines])
    if counter := tokenizer or pretrained:
        dataset = dataset.add_column("token_counts", _count(dataset, counter, with_context))
    return {split: dataset}


def _count(docs: Sequence[Doc], tokenizer: str, with_context: bool) -> list[list[int]]:
    """Count the tokens that an lm-eval model scores for each option of each doc.

    lm-eval encodes context and continuation together and takes for the continuation what lies
    beyond the length of the context encoded alone.
    """
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).encode

    def count(doc: Doc) -> list[int]:
        before = context(doc) if with_context else ""
        known = len(encode(before, add_special_tokens=False)) if before else 0
        glue = " " if before else ""
        return [
            len(encode(before + glue + text, add_special_tokens=False)) - known
            for text in filled_questions(doc)
        ]

    return [count(doc) for doc in docs]
