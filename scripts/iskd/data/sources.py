"""Which passage an item comes from: items of one passage are no independent draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from iskd.data.rows import BLANK

RUN = 5
"""So many consecutive sentences in common make two rows parts of one passage. A single sentence
does not: "Yes ." stands in many books, and one such sentence would join them all."""

_PASSAGES = ("passage", "article")
"""Fields that hold the text that several items ask about (BoolQ and RACE, for example)."""


def sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the passage that each row comes from.

    That is, in this order: the row's own `source_id` (HellaSwag's, and that of rows made from
    held-out stories); for rows of the Children's Book Test, those with a run of `RUN` consecutive
    sentences in common, and those joined by further rows; the text in `passage` or `article`;
    else the row is a source of its own.

    Args:
        rows: all rows that are evaluated, in the file's order.

    Returns:
        one name per row; equal names mean one passage
    """
    names = [_own_name(row) or f"item {place}" for place, row in enumerate(rows)]
    cloze = [place for place, row in enumerate(rows) if not _own_name(row) and is_cloze(row)]
    for place, first in zip(cloze, _joined([rows[place] for place in cloze]), strict=True):
        names[place] = f"passage {cloze[first]}"
    texts: dict[str, int] = {}
    for place, row in enumerate(rows):
        text = next((row[f] for f in _PASSAGES if isinstance(row.get(f), str)), None)
        if text and names[place] == f"item {place}":
            names[place] = f"passage {texts.setdefault(text, place)}"
    return names


def _own_name(row: Mapping[str, Any]) -> str | None:
    name = row.get("source_id")
    return str(name) if isinstance(name, str | int) and name != "" else None


def is_cloze(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is one of the Children's Book Test, whatever its task calls it."""
    sentences = row.get("sentences")
    return (
        isinstance(sentences, list)
        and all(isinstance(text, str) for text in (*sentences, row.get("question")))
        and isinstance(row.get("answer"), str)
    )


def _joined(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Give for each row the place of the first row of its passage."""
    if not rows:
        return []
    # Slow to import, and few callers of this package get here.
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    runs: dict[tuple[str, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    for place, row in enumerate(rows):
        # The question with its word put back is the passage's next sentence.
        passage = [*row["sentences"], row["question"].replace(BLANK, row["answer"])]
        # A passage too short for a run is one with those that have the same context.
        found = [passage[start : start + RUN] for start in range(len(passage) - RUN + 1)]
        for run in found or [row["sentences"]]:
            pairs.append((place, runs.setdefault(tuple(run), len(runs))))
    member, run_of = np.array(pairs).T
    size = len(rows) + len(runs)
    graph = coo_array((np.ones(len(pairs)), (member, len(rows) + run_of)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][: len(rows)].tolist()
    places: dict[int, int] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, place)
    return [places[label] for label in labels]
