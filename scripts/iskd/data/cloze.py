"""Rows in the form of the Children's Book Test, made out of plain stories.

The form is that of Hill et al. 2016 (arXiv 1511.02301): twenty sentences of context, the sentence
after them with one word removed, ten options. Their words were tagged by a parser; here nouns and
names are found by the company they keep, with the standard library alone, which is good enough for
simple prose and not for more (see :func:`_noun_kinds` for where it errs).
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words("mr mrs ms dr st prof jr sr capt col gen rev vs etc no")

_ARTICLES = _words(
    # "her", "this", "that" and "no" also stand before adjectives and verbs: no evidence of a noun.
    "the a an his their my your our its"
)
_DETERMINERS = _ARTICLES | _words(
    "her this that these those some every each any another no many two three"
)
_DEGREES = _words("very so too really more most as quite how was were is are felt")

_FUNCTION_WORDS = _DETERMINERS | _words(
    """
    i you he she it we they me him us them mine yours hers ours theirs himself herself itself
    themselves myself yourself who whom whose which what where when why how if then than because
    while until although though since and or but nor yet so as at by for from in into of off on
    onto out over to toward towards under up upon with within without about above across after
    against along among around before behind below beneath beside between beyond down during
    inside near outside past through throughout like again back away together there here
    am is are was were be been being do does did done have has had having will would shall should
    can could may might must not never always often also too very just only even still soon now
    all both few more most much other others same such own one ones first second third next last
    lot lots bit kind sort way thing things time times sudden everyone everything someone something
    anyone anything nobody nothing today tomorrow yesterday once ever almost enough well
    said asked replied went came got made saw took looked started wanted decided began ran felt
    """
)

_PLURALS = _words("children people men women feet teeth mice geese firemen policemen")

_SPELLINGS = {
    "mum": "mom",
    "mummy": "mommy",
    "mama": "mom",
    "mother": "mom",
    "father": "dad",
    "papa": "dad",
}
"""Two words for one person would be two right answers."""

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+(?=[\"“‘'(\[]*[A-Z0-9])")
_PARAGRAPH = re.compile(r"\n\s*\n")
_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[^\w\s]|\d+")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class _Token:
    """A word or a punctuation mark of a sentence, with its place (characters from the start)."""

    text: str
    start: int
    end: int
    opens: bool
    """Whether a capital here may only mark the beginning of a sentence or of direct speech."""


@dataclass(frozen=True)
class _Candidate:
    """A question that could be made: which sentence of which story, and which word of it."""

    story: int
    sentence: int
    token: _Token
    kind: str
    options: tuple[str, ...]
    """Words of the answer's kind in the context, apart from the answer, sorted."""


def split_sentences(text: str) -> list[str]:
    """Split English prose into sentences.

    A sentence ends at . ! ? or … (with the closing quotes and brackets that follow it) before a
    capital or a digit, and at every empty line; not after titles such as "Mr." or an initial, nor
    before a lower-case word, so that `"Go!" said Tom.` stays whole. Direct speech of several
    sentences is split. Runs of white space become one space; a piece without any letter is glued
    to the sentence before it.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        for piece in _pieces(" ".join(paragraph.split())):
            if sentences and not _WORD.search(piece):
                sentences[-1] += f" {piece}"
            elif piece:
                sentences.append(piece)
    return sentences


def _pieces(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        last = paragraph[start : end.start()].rpartition(" ")[2].strip("\"'“‘(").lower()
        is_abbreviation = last in _ABBREVIATIONS or (len(last) == 1 and last not in "ia")
        if not (end.group().startswith(".") and is_abbreviation):
            yield paragraph[start : end.end()].strip()
            start = end.end()
    yield paragraph[start:].strip()


def _tokens(sentence: str) -> list[_Token]:
    tokens: list[_Token] = []
    opens = True
    for match in _TOKEN.finditer(sentence):
        text = match.group()
        tokens.append(_Token(text, match.start(), match.end(), opens))
        opens = text in "\"“‘'.!?…:(" or (opens and not text[0].isalnum())
    return tokens


def _noun_kinds(stories: Iterable[Sequence[Sequence[_Token]]]) -> dict[str, str]:
    """Find out which words are names ("name"), singular ("noun") and plural nouns ("nouns").

    A name is a word that is capitalised in midst of sentences, at least twice, and more often than
    it is not. A noun stands at least three times right between an article and a function word or a
    punctuation mark, in most of its uses after an article ("the tree fell" does not count, "the
    tree and" does) and in a tenth of all its uses (most verbs do not), and is seldom graded or
    predicated ("very big"). A plural is a noun in -s (not -ss, -us, -is) or one of a few irregular
    ones. It errs with words that are noun and verb ("walk") and with adjectives that often end a
    sentence; both are rare among those that pass.
    """
    capital: Counter[str] = Counter()
    small: Counter[str] = Counter()
    after_article: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    graded: Counter[str] = Counter()
    for sentence in (sentence for story in stories for sentence in story):
        for place, token in enumerate(sentence):
            if not _WORD.fullmatch(token.text):
                continue
            if token.text[0].isupper():
                capital[token.text] += not token.opens
                continue
            small[token.text] += 1
            before = sentence[place - 1].text.lower() if place else ""
            after = sentence[place + 1].text.lower() if place + 1 < len(sentence) else "."
            graded[token.text] += before in _DEGREES
            if before in _ARTICLES:
                after_article[token.text] += 1
                closed[token.text] += after in _FUNCTION_WORDS or not after[0].isalnum()
    kinds = {
        word: "name"
        for word, count in capital.items()
        if count >= 2
        and count > small[word.lower()]
        and word.isascii()  # English names, not what a broken encoding left of a quotation mark
        and not word.isupper()
        and word.lower() not in _FUNCTION_WORDS | _ABBREVIATIONS
    }
    nouns = {
        word
        for word, count in closed.items()
        if count >= 3
        and len(word) >= 3
        and count > 0.5 * after_article[word]
        and count > 0.1 * small[word]
        and graded[word] < 0.1 * small[word]
        and word.isascii()
        and word not in _FUNCTION_WORDS
        and not _is_superlative(word, graded)
    }
    for word in nouns:
        is_plural = word.endswith("s") and not word.endswith(("ss", "us", "is"))
        kinds[word] = "nouns" if is_plural or word in _PLURALS else "noun"
    return kinds


def _is_superlative(word: str, graded: Counter[str]) -> bool:
    """Tell whether the word is "best", "worst" or -est upon an adjective: "fast", "big", "nice"."""
    stems = (word[:-3], word[:-4], word[:-2], word[:-4] + "y")
    return word in {"best", "worst"} or (
        word.endswith("est") and any(graded[stem] for stem in stems)
    )


def same_word(one: str, other: str) -> bool:
    """Tell whether two words may be forms or spellings of one.

    Errs on the side of yes ("car" and "carrot"): it only keeps a fair option out.
    """
    one, other = (_SPELLINGS.get(word.lower(), word.lower()) for word in (one, other))
    short, long = sorted((one, other), key=len)
    shared = next(
        (place for place, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]),
        len(short),
    )
    return shared >= max(3, len(short) - 1) or one == other


def _in_noun_place(sentence: Sequence[_Token], place: int) -> bool:
    """Tell whether a determiner stands before the word, next to it or with one word between."""
    before = [token.text.lower() for token in sentence[max(0, place - 2) : place]]
    after = sentence[place + 1].text.lower() if place + 1 < len(sentence) else "."
    if not before or not (after in _FUNCTION_WORDS or not after[0].isalnum()):
        return False
    if before[-1] in _DETERMINERS:
        return before[-1] != "an"  # it would give away how the answer begins
    return (
        len(before) == 2
        and before[0] in _DETERMINERS
        and before[1].isalpha()
        and before[1] not in _FUNCTION_WORDS
    )


def _candidates(
    number: int, story: Sequence[Sequence[_Token]], kinds: dict[str, str]
) -> Iterator[_Candidate]:
    """Yield every question that the story could give, sentence by sentence."""
    for index in range(CONTEXT_SENTENCES, len(story)):
        sentence = story[index]
        words = Counter(token.text.lower() for token in sentence if _WORD.match(token.text))
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
            if kind != "name" and not _in_noun_place(sentence, place):
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
    words = {match.group().lower() for match in _WORD.finditer(question)}
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
    tokens = [[_tokens(sentence) for sentence in story] for story in split]
    kinds = _noun_kinds(tokens)
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
