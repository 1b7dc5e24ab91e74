"""Telling a story: sentences made from templates and from what is true at that moment."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from iskd.data.toyworld.world import WORDS, Facts, draw_facts


@dataclass(frozen=True)
class Template:
    """The wording of a sentence.

    ``text`` has fields of ``Facts`` in braces (``new`` besides, where something changes).
    ``asks`` lists the fields whose words follow from the story so far.
    """

    text: str
    asks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """A told sentence: its template and the word in each field."""

    template: Template
    words: Mapping[str, str]

    @property
    def text(self) -> str:
        """The sentence as it stands in the story."""
        return self.template.text.format(**self.words)


@dataclass(frozen=True)
class Story:
    """One story: its sentences in order.

    ``outdated`` maps a field to the word that it had before a change in the story.
    """

    sentences: tuple[Sentence, ...]
    outdated: Mapping[str, str]
    facts: Facts

    @property
    def text(self) -> str:
        """The whole story on one line, sentences joined with spaces."""
        return " ".join(sentence.text for sentence in self.sentences)


# A story opens with a word other than a name: at a text's start a byte-level tokenizer writes a
# name without its space, as a token that occurs nowhere else.
OPENINGS = (
    Template("Once {hero_trait} {hero} and {friend_trait} {friend} were friends."),
    Template("Here is a tale of {hero_trait} {hero} and {friend_trait} {friend}."),
)

INTRODUCTIONS = (
    Template("{hero} lived in the {place}."),
    Template("{hero} had the {thing}."),
    Template("{hero} loved the {pet}."),
    Template("{hero} liked the {food}."),
)
FRIEND_INTRODUCTION = Template("{friend} had the {friend_thing}.")

# The hero comes first and two facts follow: these also serve as endings.
ENDINGS = (
    Template("{hero} took the {pet} to the {place}.", ("pet", "place")),
    Template("{hero} ate the {food} in the {place}.", ("food", "place")),
    Template("{hero} gave the {food} to the {pet}.", ("food", "pet")),
    Template("{hero} hid the {thing} from the {pet}.", ("thing", "pet")),
    Template("{hero} took the {thing} to the {place}.", ("thing", "place")),
    Template("{hero} had the {food} and the {thing}.", ("food", "thing")),
)

EVENTS = (
    *ENDINGS,
    Template("{hero} sat in the {place}.", ("place",)),
    Template("{hero} held the {thing}.", ("thing",)),
    Template("{hero} fed the {pet}.", ("pet",)),
    Template("{hero} ate the {food}.", ("food",)),
    Template("{friend} came to the {place}.", ("place",)),
    Template("The {pet} ran to the {place}.", ("place",)),
    Template("The {pet} ate the {food}.", ("food",)),
)

FRIEND_EVENTS = (
    Template("{friend} held the {friend_thing}.", ("friend_thing",)),
    Template("{friend} took the {friend_thing} to the {place}.", ("friend_thing", "place")),
)

CHANGES = {
    "place": Template("Then {hero} left the {place} for the {new}."),
    "thing": Template("Then {hero} gave the {thing} for the {new}."),
}

# A task row takes this many sentences as its context; the sentence after them is asked about.
CONTEXT_SENTENCES = 20
# Fewest and most sentences of a story: at least one more than a task row's context and question.
STORY_SENTENCES = (22, 24)
# A change comes at one of these positions, so that the new fact is told again before the question.
CHANGE_POSITIONS = (8, 13)
CHANGE_CHANCE = 0.4
FRIEND_EVENT_CHANCE = 0.2


def _tell(template: Template, facts: Facts) -> Sentence:
    """Fill ``template`` with what is true."""
    told = {
        field: word
        for field, word in vars(facts).items()
        if word is not None and f"{{{field}}}" in template.text
    }
    return Sentence(template, told)


def _introduce(rng: random.Random, facts: Facts) -> list[Sentence]:
    """Tell who there is and all that is true of them, in any order."""
    introductions = [*INTRODUCTIONS]
    if facts.friend_thing is not None:
        introductions.append(FRIEND_INTRODUCTION)
    rng.shuffle(introductions)
    return [_tell(template, facts) for template in (rng.choice(OPENINGS), *introductions)]


def _change(rng: random.Random, facts: Facts, field: str) -> tuple[Sentence, Facts]:
    """Give the hero another ``field`` (a key of ``CHANGES``); gives what is true now, too."""
    taken = (facts.place, facts.thing, facts.friend_thing)
    new = rng.choice([word for word in WORDS[field] if word not in taken])
    before = _tell(CHANGES[field], facts)
    return Sentence(before.template, {**before.words, "new": new}), replace(facts, **{field: new})


def _happen(rng: random.Random, facts: Facts) -> Sentence:
    """Tell something that rests on facts told before."""
    friends_turn = facts.friend_thing is not None and rng.random() < FRIEND_EVENT_CHANCE
    return _tell(rng.choice(FRIEND_EVENTS if friends_turn else EVENTS), facts)


def tell_story(rng: random.Random) -> Story:
    """Tell one story, with facts drawn for it alone.

    The first sentences tell all the facts; those after them rest on these. In a share of
    ``CHANGE_CHANCE`` of the stories the hero later moves or trades the thing for another one,
    which makes the older sentences about it misleading. The last sentence is one of ``ENDINGS``.
    """
    facts = draw_facts(rng)
    sentences = _introduce(rng, facts)
    length = rng.randint(*STORY_SENTENCES)
    changed = rng.choice(sorted(CHANGES)) if rng.random() < CHANGE_CHANCE else None
    change_at = rng.randint(*CHANGE_POSITIONS)
    outdated: dict[str, str] = {}
    while len(sentences) < length - 1:
        if changed is not None and len(sentences) == change_at:
            outdated[changed] = vars(facts)[changed]
            sentence, facts = _change(rng, facts, changed)
        else:
            sentence = _happen(rng, facts)
        sentences.append(sentence)
    sentences.append(_tell(rng.choice(ENDINGS), facts))
    return Story(tuple(sentences), outdated, facts)
