"""Rows in the form of the Children's Book Test, made out of plain stories.

The form is that of Hill et al. 2016 (arXiv 1511.02301): twenty sentences of context, the sentence
after them with one word removed, ten options. Their words were tagged by a parser; here
:mod:`iskd.data.english` finds the nouns and names.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from iskd.data.english import (
    WORD,
    Token,
    in_noun_place,
    noun_kinds,
    same_word,
    split_sentences,
    tokens_of,
)
from iskd.data.rows import BLANK, Row, seeded_order
from iskd.errors import UserError

_T = TypeVar("_T")

CONTEXT_SENTENCES = 20
OPTIONS = 10
MAX_PER_STORY = 3
"""Rows made out of one story at most."""

_MIN_QUESTION_WORDS = 5
_MIN_CONTEXT_OPTIONS = {"noun": 4, "nouns": 2, "name": 2}
"""How many wrong options the context itself must offer: where the answer is the only option that
was met before, nothing is asked."""


@dataclass(frozen=True)
class _Candidate:
    """A question that could be made: which sentence of which story, and which word of it."""

    story: int
    sentence: int
    token: Token
    kind: str
    options: tuple[str, ...]
    """Words of the answer's kind in the context, apart from the answer, sorted."""


def _candidates(
    number: int, story: Sequence[Sequence[Token]], kinds: dict[str, str]
) -> Iterator[_Candidate]:
    """Yield every question that the story could give, sentence by sentence."""
    for index in range(CONTEXT_SENTENCES, len(story)):
        sentence = story[index]
        words = Counter(token.text.lower() for token in sentence if WORD.match(token.text))
        if words.total() < _MIN_QUESTION_WORDS:
            continue
        context = story[index - CONTEXT_SENTENCES : index]
        met = {token.text for context_sentence in context for token in context_sentence}
        met_by_kind: defaultdict[str, list[str]] = defaultdict(list)
        for word in sorted(met & kinds.keys()):
            met_by_kind[kinds[word]].append(word)
        for place, token in enumerate(sentence):
            kind = kinds.get(token.text)
            if kind is None or token.text not in met or words[token.text.lower()] > 1:
                continue
            if kind != "name" and not in_noun_place(sentence, place):
                continue
            options = tuple(_fair(token.text, met_by_kind[kind], words))
            if len(options) >= _MIN_CONTEXT_OPTIONS[kind]:
                yield _Candidate(number, index, token, kind, options)


def _fair(answer: str, words: Iterable[str], question: Container[str]) -> Iterator[str]:
    """Yield the words that can be options beside the answer and those before them.

    `question` holds the lower-case words of the question.
    """
    taken = [answer]
    for word in words:
        if word.lower() not in question and not any(same_word(word, other) for other in taken):
            taken.append(word)
            yield word


def _row(
    candidate: _Candidate, sentences: Sequence[str], pool: Sequence[str], rng: random.Random
) -> Row | None:
    """Make the row, or None where the stories have too few other words of the answer's kind."""
    token, question = candidate.token, sentences[candidate.sentence]
    words = {match.group().lower() for match in WORD.finditer(question)}
    context = [candidate.options[i] for i in seeded_order(len(candidate.options), rng)]
    others = [pool[i] for i in seeded_order(len(pool), rng)]
    wrong = list(islice(_fair(token.text, [*context, *others], words), OPTIONS - 1))
    if len(wrong) < OPTIONS - 1:
        return None
    options = [token.text, *wrong]
    return {
        "sentences": list(sentences[candidate.sentence - CONTEXT_SENTENCES : candidate.sentence]),
        "question": question[: token.start] + BLANK + question[token.end :],
        "answer": token.text,
        "options": [options[i] for i in seeded_order(OPTIONS, rng)],
        "source_id": f"story {candidate.story}",
    }


def cloze_rows(stories: list[str], rows: int, seed: int) -> list[Row]:
    """Make rows in the hub's schema of cam-cst/cbt out of real stories, named in `source_id`.

    The removed word is a common noun, or in a story that offers no such question a name; it also
    occurs in the context, and in the question only once. The nine wrong options are words of its
    kind (name, singular, plural), drawn first from the same context and then from all the stories
    given; none is a form or another spelling of the answer or of another option, none stands in
    the question, and all are capitalised like the answer. Every story gives one row before any
    gives a second, and none more than MAX_PER_STORY, each from another sentence and with another
    answer.

    Args:
        stories: Held-out prose, one story per entry; a story given twice counts once.
        rows: How many rows to make.
        seed: Seed of all draws.

    Returns:
        The rows, in the order of the stories and of their sentences.

    Raises:
        UserError: The stories are too few or too short; the message says how many rows they give.
    """
    if rows < 1:
        raise UserError(f"number of cloze rows is {rows}: it must be at least 1")
    rng = random.Random(seed)
    split = [split_sentences(story) for story in dict.fromkeys(stories)]
    tokens = [[tokens_of(sentence) for sentence in story] for story in split]
    kinds = noun_kinds(tokens)
    pools: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(kinds):
        pools[kinds[word]].append(word)

    made: list[tuple[int, int, Row]] = []
    queues = {
        # Nouns first: few stories have the names that a question about names needs.
        number: sorted(
            _shuffled(list(_candidates(number, story, kinds)), rng),
            key=lambda candidate: candidate.kind == "name",
        )
        for number, story in enumerate(tokens)
        if len(story) > CONTEXT_SENTENCES
    }
    for _ in range(MAX_PER_STORY):
        for number in _shuffled(list(queues), rng):
            if len(made) == rows:
                break
            used = [(at, row["answer"]) for story, at, row in made if story == number]
            for candidate in queues[number]:
                if any(
                    candidate.sentence == at or candidate.token.text == word for at, word in used
                ):
                    continue
                row = _row(candidate, split[number], pools[candidate.kind], rng)
                if row is not None:
                    made.append((number, candidate.sentence, row))
                    break
    if len(made) < rows:
        raise UserError(
            f"{rows} cloze rows were asked for and only {len(made)} can be made: "
            f"{len(queues)} of {len(split)} stories have more than {CONTEXT_SENTENCES} sentences; "
            "ask for fewer rows or give more long stories"
        )
    return [row for _, _, row in sorted(made, key=lambda item: item[:2])]


def _shuffled(items: list[_T], rng: random.Random) -> list[_T]:
    return [items[i] for i in seeded_order(len(items), rng)]
