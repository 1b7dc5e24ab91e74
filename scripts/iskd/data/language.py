"""Whether a text is English prose: what is made from sentences here knows no other language."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice

_WORD = re.compile(r"[^\W\d_]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Frequent words of English; those that are frequent in German, Dutch, French or Spanish as well
# ("in", "an", "was", "so", "die", "me", "he", "no") are left out.
_FREQUENT = _words(
    """
    the of and to is it that for on are with as his they at be this from have by not but what all
    were when there your which their said if do each about how up out them then she many some her
    would make like him into time has look two more write go see could been than who its now find
    down did get come made may after back only our just very had you my
    """
)
LEAST_SHARE = 0.15
"""Of children's books 41 % are such words, of TinyStories 40 %, of WikiText-2 30 %; of a few
sentences of Danish 13 %, Dutch 11 %, French 2 %, German 1 %, Spanish none."""
TEXTS = 200
"""So many texts of a corpus are looked at, and of each of them the beginning."""
_CHARACTERS = 2000


def english_share(texts: Iterable[str]) -> float | None:
    """Give the share of frequent English words among the words of some texts.

    Args:
        texts: of which the beginnings of the first 200 are looked at.

    Returns:
        a fraction; None where there are no letters at all
    """
    words = [
        word.lower() for text in islice(texts, TEXTS) for word in _WORD.findall(text[:_CHARACTERS])
    ]
    return sum(word in _FREQUENT for word in words) / len(words) if words else None


def not_english(texts: Sequence[str]) -> str | None:
    """Say why texts are taken for another language than English; None where they are English."""
    share = english_share(texts)
    if share is None or share >= LEAST_SHARE:
        return None
    return (
        f"the text seems to be no English: {share:.0%} of its words are frequent English words, of "
        f"English prose at least {LEAST_SHARE:.0%} are"
    )
