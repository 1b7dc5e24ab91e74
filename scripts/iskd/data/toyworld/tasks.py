"""Benchmark rows made from stories, in the schemas that the real benchmarks use."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from iskd.data.rows import BLANK
from iskd.data.toyworld.stories import CONTEXT_SENTENCES, Sentence, Story
from iskd.data.toyworld.world import WORDS, word_class

OPTIONS = 10
ENDINGS_PER_ROW = 4


def _rivals(story: Story, field: str) -> list[str]:
    """Words of the story that could be taken for its ``field`` and are not."""
    told = [*story.outdated.values(), story.facts.thing, story.facts.friend_thing]
    right = getattr(story.facts, field)
    known = WORDS[word_class(field)]
    return [word for word in told if word is not None and word in known and word != right]


def cloze_row(rng: random.Random, story: Story) -> dict[str, Any]:
    """Make a row of the Children's Book Test from a story.

    The context is the first ``CONTEXT_SENTENCES`` sentences, the question is the next one with one
    word taken out. All options are of that word's class. Those of the story that are wrong here
    (someone else's, or outdated) are among them, so that presence alone does not always decide.
    """
    sentence = story.sentences[CONTEXT_SENTENCES]
    field = rng.choice(sentence.template.asks)
    answer = sentence.words[field]
    rivals = _rivals(story, field)
    others = [word for word in WORDS[word_class(field)] if word != answer and word not in rivals]
    options = [answer, *rivals, *rng.sample(others, OPTIONS - 1 - len(rivals))]
    rng.shuffle(options)
    return {
        "sentences": [told.text for told in story.sentences[:CONTEXT_SENTENCES]],
        "question": Sentence(sentence.template, {**sentence.words, field: BLANK}).text,
        "answer": answer,
        "options": options,
    }


def _ending(sentence: Sentence, words: Mapping[str, str]) -> str:
    """Tell ``sentence`` with ``words`` in its fields, without the name it begins with."""
    return sentence.template.text.format(**{**sentence.words, **words}).split(" ", 1)[1]


def _wrong_words(rng: random.Random, story: Story, field: str) -> list[str]:
    """Draw wrong words for ``field``, one for each wrong ending, the story's own ones first."""
    rivals = _rivals(story, field)
    right = getattr(story.facts, field)
    others = [word for word in WORDS[word_class(field)] if word != right and word not in rivals]
    return [*rivals, *rng.sample(others, ENDINGS_PER_ROW)][: ENDINGS_PER_ROW - 1]


def _wrong_endings(rng: random.Random, story: Story) -> list[str]:
    """Endings at odds with the story: one wrong in both facts, the two others in one each."""
    last = story.sentences[-1]
    first, second = last.template.asks
    firsts, seconds = (_wrong_words(rng, story, field) for field in (first, second))
    changes: Sequence[Mapping[str, str]] = (
        {first: firsts[0]},
        {second: seconds[0]},
        {first: firsts[1], second: seconds[1]},
    )
    return [_ending(last, change) for change in changes]


def continuation_row(
    rng: random.Random, story: Story, index: int, label: int, source: str
) -> dict[str, Any]:
    """Make a row of HellaSwag from a story.

    The context is all but the last sentence, and the name that the last one begins with; the
    endings are the rest of it, the right one at position ``label`` (0 to 3). ``index`` becomes
    ``ind`` and ``source`` becomes ``source_id``, the story's own mark.
    """
    *before, last = story.sentences
    endings = _wrong_endings(rng, story)
    rng.shuffle(endings)
    endings.insert(label, _ending(last, {}))
    context = " ".join(told.text for told in before)
    name = last.words["hero"]
    return {
        "ind": index,
        "activity_label": "Two friends",
        "ctx_a": context,
        "ctx_b": name,
        "ctx": f"{context} {name}",
        "endings": endings,
        "source_id": source,
        "split": "val",
        "split_type": "indomain",
        "label": str(label),
    }
