"""Cloze rows made out of stories: their form, their fairness, their determinism."""

import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iskd.data.cloze import CONTEXT_SENTENCES, MAX_PER_STORY, OPTIONS, cloze_rows
from iskd.data.english import same_word, split_sentences
from iskd.data.row_kinds import read_rows
from iskd.data.rows import write_rows
from iskd.data.sources import sources
from iskd.errors import UserError

WORDS = """
    dog cat river garden bridge farmer kitchen window apple basket mountain lantern wagon
    hammer candle teacher village pillow ladder forest bird birdie lamp lampion
    Anna Boris Clara Dennis Edith Felix Greta Hugo Iris Jonas Karl Leo
"""
NOUNS = [word for word in WORDS.split() if word.islower()]
NAMES = [word for word in WORDS.split() if word.istitle()]


def story(picks: list[tuple[int, int, int]]) -> str:
    """Write one sentence per pick: two nouns and a name in midst of the sentence."""
    return " ".join(
        f'"Look!" said {NAMES[name]} at the {NOUNS[one]}, near his {NOUNS[other]}.'
        for one, other, name in picks
    )


def stories_of(length: int, few: int, many: int) -> st.SearchStrategy[list[str]]:
    pick = st.tuples(
        st.integers(0, len(NOUNS) - 1), st.integers(0, len(NOUNS) - 1), st.integers(0, 11)
    )
    picks = st.lists(pick, min_size=length, max_size=length)
    return st.lists(picks.map(story), min_size=few, max_size=many, unique=True)


def fixed_stories(count: int, length: int = 30) -> list[str]:
    return [
        story([((7 * i + k * k) % 24, (11 * i + 3 * k) % 24, (i + k) % 12) for i in range(length)])
        for k in range(count)
    ]


def check(row: dict[str, Any]) -> None:
    lower = [option.lower() for option in row["options"]]
    answer, context = row["answer"], " ".join(row["sentences"])
    assert len(row["sentences"]) == CONTEXT_SENTENCES
    assert len(set(lower)) == len(lower) == OPTIONS
    assert answer in row["options"]
    assert row["question"].count("XXXXX") == 1
    words = re.findall(r"\w+", row["question"].replace("XXXXX", "").lower())
    assert not set(words) & set(lower)
    assert answer in re.findall(r"\w+", context)
    assert all(option[0].isupper() == answer[0].isupper() for option in row["options"])
    assert not any(same_word(*pair) for pair in combinations(row["options"], 2))
    wrong = [option for option in row["options"] if option != answer]
    assert sum(option in context for option in wrong) >= 2


@settings(max_examples=25, deadline=None)
@given(stories=stories_of(24, 3, 5), seed=st.integers(0, 2**32))
def test_rows_have_the_form_whatever_the_stories(stories: list[str], seed: int) -> None:
    stories = [*stories, *fixed_stories(2)]
    rows = cloze_rows(stories, 3, seed)
    assert len(rows) == 3
    for row in rows:
        check(row)
    assert cloze_rows(stories, 3, seed) == rows


def test_both_nouns_and_names_are_left_out() -> None:
    rows = cloze_rows(fixed_stories(6), 18, 3)
    for row in rows:
        check(row)
    assert {row["answer"] for row in rows} <= set(NOUNS)
    names_only = [
        " ".join(
            f"Then {NAMES[(i + k) % 12]} ran home with {NAMES[(2 * i) % 12]}." for i in range(25)
        )
        for k in range(4)
    ]
    rows = cloze_rows(names_only, 4, 3)
    for row in rows:
        check(row)
    assert {row["answer"] for row in rows} <= set(NAMES)


def test_question_and_context_are_neighbours_in_the_story() -> None:
    stories = fixed_stories(3)
    for row in cloze_rows(stories, 6, 8):
        filled = row["question"].replace("XXXXX", row["answer"])
        assert any(" ".join([*row["sentences"], filled]) in text for text in stories)


def test_options_come_from_the_context_first() -> None:
    few_nouns_each = [
        story([(3 * k + i % 7, 3 * k + 2 * i % 7, i % 12) for i in range(30)]) for k in range(6)
    ]
    for row in cloze_rows(few_nouns_each, 12, 5):
        context = set(re.findall(r"\w+", " ".join(row["sentences"])))
        question = set(re.findall(r"\w+", row["question"]))
        usable = (context & set(NOUNS)) - question - {row["answer"]}
        met = (set(row["options"]) - {row["answer"]}) & context
        assert met == usable
        assert len(met) < OPTIONS - 1  # the others had to come from elsewhere


def test_every_story_gives_one_row_before_any_gives_two() -> None:
    stories = fixed_stories(5)

    def per_story(rows: list[dict[str, Any]]) -> Counter[int]:
        return Counter(
            next(i for i, text in enumerate(stories) if " ".join(row["sentences"]) in text)
            for row in rows
        )

    assert per_story(cloze_rows(stories, 5, 0)) == dict.fromkeys(range(5), 1)
    assert sorted(per_story(cloze_rows(stories, 7, 0)).values()) == [1, 1, 1, 2, 2]
    full = cloze_rows(stories, 5 * MAX_PER_STORY, 0)
    assert per_story(full) == dict.fromkeys(range(5), MAX_PER_STORY)
    assert len({(row["question"], *row["sentences"]) for row in full}) == len(full)


def test_rows_name_their_story_even_where_they_have_no_sentence_in_common() -> None:
    stories = fixed_stories(5, 60)
    rows = cloze_rows(stories, 5 * MAX_PER_STORY, 0)
    for row, source in zip(rows, sources(rows), strict=True):
        number = int(source.removeprefix("story "))
        assert " ".join(row["sentences"]) in stories[number]
    assert len(set(sources(rows))) == 5


def test_the_seed_moves_choices_and_the_answer_has_no_favourite_place() -> None:
    stories = fixed_stories(6)
    assert cloze_rows(stories, 10, 1) != cloze_rows(stories, 10, 2)
    places = {
        row["options"].index(row["answer"])
        for seed in range(8)
        for row in cloze_rows(stories, 18, seed)
    }
    assert places == set(range(OPTIONS))


def test_too_few_stories_are_counted() -> None:
    stories = [*fixed_stories(2), *fixed_stories(2), story([(0, 1, 2)] * 5)]
    with pytest.raises(UserError) as caught:
        cloze_rows(stories, 50, 0)
    assert "only 6 can be made: 2 of 3 stories" in str(caught.value)
    assert len(cloze_rows(stories, 6, 0)) == 6
    with pytest.raises(UserError, match="at least 1"):
        cloze_rows(stories, 0, 0)
    with pytest.raises(UserError, match="only 0 can be made"):
        cloze_rows([], 1, 0)


def test_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cloze") / "rows.jsonl"
    rows = cloze_rows(fixed_stories(4), 6, 2)
    write_rows(path, rows)
    assert read_rows(path, "cbt_context") == rows


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He sat. She ran!", ["He sat.", "She ran!"]),
        ("Mr. Fox met Dr. Owl. They ate.", ["Mr. Fox met Dr. Owl.", "They ate."]),
        ('"Stop!" said Tom. "Why?" Ann asked.', ['"Stop!" said Tom.', '"Why?"', "Ann asked."]),
        ("“I am here.” He left.", ["“I am here.”", "He left."]),
        ("One line\nof text.\n\nno capital", ["One line of text.", "no capital"]),
        ("Wait... what? 3 cats came.", ["Wait... what?", "3 cats came."]),
        ("J. Smith came. I did. A was I. Then", ["J. Smith came.", "I did.", "A was I.", "Then"]),
        ('He left.\n\n"\n\nShe came.', ['He left. "', "She came."]),
        ("", []),
    ],
)
def test_sentences_are_split_with_care(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB.!?\" \n'M", max_size=60))
def test_splitting_loses_nothing_but_space(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("dog", "Dog", True),
        ("dog", "dogs", True),
        ("bunny", "bunnies", True),
        ("color", "colour", True),
        ("Tim", "Timmy", True),
        ("mum", "mom", True),
        ("mother", "mommy", True),
        ("dog", "cat", False),
        ("book", "bread", False),
        ("Ann", "Sue", False),
    ],
)
def test_forms_and_spellings_of_one_word_are_recognised(one: str, other: str, same: bool) -> None:
    assert same_word(one, other) is same
    assert same_word(other, one) is same
