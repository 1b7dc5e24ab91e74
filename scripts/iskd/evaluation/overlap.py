"""What of a task's items stands in the text that a model is trained on."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from iskd.data.row_kinds import is_continuation
from iskd.data.rows import BLANK
from iskd.data.sources import is_cloze, sources
from iskd.evaluation import statistics
from iskd.evaluation.metric import Metric, metric_of

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Split a text into words of letters and digits, in lower case; punctuation does not count."""
    return _WORD.findall(text.lower())


def item_text(row: Mapping[str, Any]) -> str:
    """Give what an item tells with its right answer; for a row of unknown fields, all its texts."""
    if is_cloze(row):
        return " ".join([*row["sentences"], row["question"].replace(BLANK, row["answer"])])
    if is_continuation(row):
        return " ".join([row["ctx_a"], row["ctx_b"], row["endings"][int(row["label"])]])
    return " ".join(_texts(row))


def _texts(value: Any) -> Iterator[str]:
    """Give the texts in a value of any depth, in their order."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += reversed(list(value.values()))
        elif isinstance(value, Sequence):
            waiting += reversed(value)


def measure_overlap(
    rows: Sequence[Mapping[str, Any]], corpus: Iterable[str], n: int
) -> list[dict[str, Any]]:
    """Look for runs of words that an item and the corpus share (n-gram overlap).

    An item overlaps if n of its words in a row stand in one story of the corpus in the same order
    (Brown et al. 2020, arXiv 2005.14165, C; there n = 13 and punctuation does not count either). An
    item of fewer words overlaps if it stands there as a whole.

    Args:
        rows: the items.
        corpus: stories, read once; memory holds the items' runs and one story.
        n: words in a row.

    Returns:
        per row ``index``, ``source``, ``words`` (how many it has), ``runs`` (different runs of n
        words), ``shared`` (how many of these stand in the corpus) and ``overlap`` (whether any)
    """
    runs: dict[int, dict[tuple[str, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
    items = [words_of(item_text(row)) for row in rows]
    for index, words in enumerate(items):
        length = min(n, len(words))
        for run in _windows(words, length):
            runs[length][run].add(index)
    found: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for story in corpus:
        words = words_of(story)
        for length, wanted in runs.items():
            for run in _windows(words, length):
                if run in wanted:
                    for index in wanted[run]:
                        found[index].add(run)
    return [
        {
            "index": index,
            "source": source,
            "words": len(words),
            "runs": len(set(_windows(words, min(n, len(words))))),
            "shared": len(found[index]),
            "overlap": bool(found[index]),
        }
        for index, (words, source) in enumerate(zip(items, sources(rows), strict=True))
    ]


def overlap_metrics(items: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Give the share of items that overlap, over the records of :func:`measure_overlap`."""
    named = [item["source"] for item in items]
    share = statistics.proportion([item["overlap"] for item in items], named)
    return {"overlap": metric_of(share)}


def _windows(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    if length:
        yield from (tuple(words[i : i + length]) for i in range(len(words) - length + 1))
