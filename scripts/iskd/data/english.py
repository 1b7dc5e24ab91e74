"""Which words of plain English prose are nouns.

There is no parser: nouns and names are found by the company they keep, with the standard library
alone, which is good enough for simple prose and not for more (see :func:`noun_kinds` for where it
errs).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


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
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Token:
    """A word or a punctuation mark of a sentence, with its place (characters from the start)."""

    text: str
    start: int
    end: int
    opens: bool
    """Whether a capital here may only mark the beginning of a sentence or of direct speech."""


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
            if sentences and not WORD.search(piece):
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


def tokens_of(sentence: str) -> list[Token]:
    """Split a sentence into words, numbers and punctuation marks."""
    tokens: list[Token] = []
    opens = True
    for match in _TOKEN.finditer(sentence):
        text = match.group()
        tokens.append(Token(text, match.start(), match.end(), opens))
        opens = text in "\"“‘'.!?…:(" or (opens and not text[0].isalnum())
    return tokens


def noun_kinds(stories: Iterable[Sequence[Sequence[Token]]]) -> dict[str, str]:
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
            if not WORD.fullmatch(token.text):
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


def in_noun_place(sentence: Sequence[Token], place: int) -> bool:
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
