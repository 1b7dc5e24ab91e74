"""The small world behind the stories: its words, and the facts of one story.

Every story draws its facts anew, so that no fact outlives a story: what a model learns is how to
look facts up, not the facts.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

# Short, common words, each of one class only: a byte-level tokenizer of 512 entries then keeps
# nearly all of them whole, and the place in a sentence tells which class of word it wants.
WORDS: Mapping[str, tuple[str, ...]] = {
    "name": ("Tom", "Ann", "Ben", "Sue", "Max", "Eva", "Jim", "Pam", "Sam", "Meg", "Dan", "Liz"),
    "place": (
        "mill", "barn", "cave", "fort", "tent", "hut", "shop", "camp", "park", "wood", "tower",
        "farm",
    ),
    "thing": (
        "cup", "ball", "drum", "kite", "key", "bell", "hat", "ring", "lamp", "map", "coin", "doll",
    ),
    "pet": (
        "cat", "dog", "pig", "hen", "goat", "duck", "frog", "fox", "crow", "lamb", "bear", "mouse",
    ),
    "food": (
        "fig", "bun", "pie", "egg", "nut", "pear", "plum", "corn", "jam", "rice", "soup", "bean",
    ),
}  # fmt: skip

# A character's trait is the same in every story: what can be learnt by heart, beside the facts,
# which cannot.
TRAITS: Mapping[str, str] = {
    "Tom": "brave", "Ann": "shy", "Ben": "kind", "Sue": "loud", "Max": "wild", "Eva": "calm",
    "Jim": "proud", "Pam": "neat", "Sam": "slow", "Meg": "quick", "Dan": "glad", "Liz": "wise",
}  # fmt: skip

# In this share of the stories the friend has a thing as well, so that whose thing it is matters.
FRIEND_OWNS = 0.5


@dataclass(frozen=True)
class Facts:
    """What is true at one moment of a story.

    ``hero_trait`` and ``friend_trait`` belong to the names and never change. ``place``, ``thing``,
    ``pet`` and ``food`` are the hero's; ``friend_thing`` is what the friend has, or None for a
    friend who has nothing.
    """

    hero: str
    hero_trait: str
    friend: str
    friend_trait: str
    place: str
    thing: str
    pet: str
    food: str
    friend_thing: str | None


def word_class(field: str) -> str:
    """Name the class in ``WORDS`` that the words of a field of ``Facts`` belong to."""
    if field in ("hero", "friend"):
        return "name"
    return "thing" if field == "friend_thing" else field


def draw_facts(rng: random.Random) -> Facts:
    """Draw the facts of one story, evenly within each class."""
    hero, friend = rng.sample(WORDS["name"], 2)
    thing, friend_thing = rng.sample(WORDS["thing"], 2)
    place, pet, food = (rng.choice(WORDS[field]) for field in ("place", "pet", "food"))
    owns = rng.random() < FRIEND_OWNS
    return Facts(
        hero=hero,
        hero_trait=TRAITS[hero],
        friend=friend,
        friend_trait=TRAITS[friend],
        place=place,
        thing=thing,
        pet=pet,
        food=food,
        friend_thing=friend_thing if owns else None,
    )
