"""Stories of another place: told as the corpus's are, with names and nouns it does not have.

A model that was tuned on the corpus until it knew nothing else shows it here.
"""

import random
import re
from collections.abc import Mapping

from iskd.data.toyworld.stories import tell_story
from iskd.data.toyworld.world import TRAITS, WORDS

# One for each word of the world, in the same order.
OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "name": (
        "Olaf", "Ingrid", "Sven", "Astrid", "Lars", "Freya", "Nils", "Greta", "Bjorn", "Helga",
        "Erik", "Sigrid",
    ),
    "place": (
        "harbour", "station", "airport", "museum", "office", "library", "bakery", "theatre",
        "stadium", "hospital", "factory", "market",
    ),
    "thing": (
        "laptop", "camera", "ticket", "umbrella", "suitcase", "guitar", "bicycle", "newspaper",
        "telephone", "calendar", "passport", "magazine",
    ),
    "pet": (
        "parrot", "hamster", "lizard", "turtle", "rabbit", "pigeon", "donkey", "monkey", "badger",
        "squirrel", "otter", "hedgehog",
    ),
    "food": (
        "pizza", "noodle", "sandwich", "salad", "pancake", "omelette", "burger", "yoghurt",
        "cheese", "pudding", "sausage", "muffin",
    ),
}  # fmt: skip
OTHER_TRAITS = (
    "nervous", "cheerful", "clever", "honest", "modest", "famous", "gentle", "careful", "curious",
    "serious", "patient", "jealous",
)  # fmt: skip

_TRANSLATION = {
    **{
        word: other
        for kind, words in WORDS.items()
        for word, other in zip(words, OTHER_WORDS[kind], strict=True)
    },
    **dict(zip(TRAITS.values(), OTHER_TRAITS, strict=True)),
}


def translated(text: str) -> str:
    """Put the other place's word for each name, noun and trait of the world."""
    return re.sub(r"\w+", lambda found: _TRANSLATION.get(found[0], found[0]), text)


def other_stories(seed: int, count: int, *, other_words: bool) -> list[str]:
    """Tell stories for a text beside the corpus, from a seed.

    Args:
        seed: their own seed; that of the corpus gives other stories too.
        count: how many.
        other_words: with names and nouns that the corpus does not have, or with its own.
    """
    rng = random.Random(f"toyworld/{seed}/other text")
    told = (tell_story(rng).text for _ in range(count))
    return [translated(text) if other_words else text for text in told]
