"""A toy world: stories to train on, and benchmark rows about stories held out from training."""

import random
from dataclasses import dataclass
from typing import Any

from iskd.data.toyworld.stories import Story, tell_story
from iskd.data.toyworld.tasks import ENDINGS_PER_ROW, cloze_row, continuation_row
from iskd.errors import UserError

__all__ = ["ToyWorld", "make_toyworld"]


@dataclass(frozen=True)
class ToyWorld:
    """Stories, and the tasks made from the held-out ones.

    ``train`` and ``heldout`` hold one story per string and share none. ``cbt`` has rows in the
    schema of the Children's Book Test, ``hellaswag`` rows in that of HellaSwag.
    """

    train: list[str]
    heldout: list[str]
    cbt: list[dict[str, Any]]
    hellaswag: list[dict[str, Any]]


def _stream(seed: int, purpose: str) -> random.Random:
    """Give each purpose its own numbers, so that asking for more rows leaves the stories alone."""
    return random.Random(f"toyworld/{seed}/{purpose}")


def _tell_new(rng: random.Random, count: int, known: set[str]) -> list[Story]:
    """Tell ``count`` stories whose texts are not in ``known``, and add them to it."""
    stories: list[Story] = []
    while len(stories) < count:
        story = tell_story(rng)
        if story.text not in known:
            known.add(story.text)
            stories.append(story)
    return stories


def _check_counts(
    stories: int, heldout_stories: int, cloze_rows: int, continuation_rows: int
) -> None:
    """Refuse counts that no world can have, with ``UserError``."""
    counts = {
        "stories": stories,
        "heldout_stories": heldout_stories,
        "cloze_rows": cloze_rows,
        "continuation_rows": continuation_rows,
    }
    for key, count in counts.items():
        if count < 0:
            raise UserError(f"toyworld: {key} is {count}; it must be 0 or more")
    for key in ("cloze_rows", "continuation_rows"):
        if counts[key] > heldout_stories:
            raise UserError(
                f"toyworld: {key} is {counts[key]}, but each row takes a held-out story of its own "
                f"and heldout_stories is {heldout_stories}; lower {key} or raise heldout_stories"
            )


def make_toyworld(
    seed: int, stories: int, heldout_stories: int, cloze_rows: int, continuation_rows: int
) -> ToyWorld:
    """Make a world from its seed alone; the same arguments give the same world everywhere.

    ``stories`` and ``heldout_stories`` count the stories to train on and those kept from training;
    ``cloze_rows`` and ``continuation_rows`` count the rows in the form of the Children's Book Test
    and of HellaSwag, each from another held-out story. Raises ``UserError`` for a negative count
    and for more rows of one form than held-out stories.
    """
    _check_counts(stories, heldout_stories, cloze_rows, continuation_rows)
    known: set[str] = set()
    train = _tell_new(_stream(seed, "train"), stories, known)
    heldout = _tell_new(_stream(seed, "heldout"), heldout_stories, known)
    rng = _stream(seed, "cloze")
    cbt = [cloze_row(rng, story) for story in heldout[:cloze_rows]]
    rng = _stream(seed, "continuation")
    labels = [row % ENDINGS_PER_ROW for row in range(continuation_rows)]
    rng.shuffle(labels)
    hellaswag = [
        continuation_row(rng, story, row, label, f"toyworld~{seed}~{row}")
        for row, (story, label) in enumerate(zip(heldout, labels, strict=False))
    ]
    return ToyWorld(
        [story.text for story in train], [story.text for story in heldout], cbt, hellaswag
    )
