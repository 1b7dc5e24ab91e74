"""Runs of words that items and the corpus share, against sets made by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.evaluation.overlap import item_text, measure_overlap, overlap_metrics, words_of

ROW = {"sentences": ["The hen sat.", "It rained."], "question": "A XXXXX ran", "answer": "fox"}


def test_words_are_letters_and_digits_in_lower_case() -> None:
    assert words_of("Don't PANIC, it's 42_!") == ["don", "t", "panic", "it", "s", "42"]


def test_an_item_is_its_text_with_its_right_answer() -> None:
    assert item_text(ROW) == "The hen sat. It rained. A fox ran"
    row = {"ctx_a": "One", "ctx_b": "two", "endings": ["three", "four"], "label": "1"}
    assert item_text(row) == "One two four"
    assert item_text({"a": "x", "n": 3, "b": {"text": ["y", "z"]}}) == "x y z"


def test_overlap_equals_what_is_counted_by_hand() -> None:
    rows: list[Mapping[str, Any]] = [ROW, {"text": "a b c d"}, {"text": "hen sat"}, {"text": "..."}]
    corpus = ["So the hen sat: it RAINED.", "a b", "c d a b c"]
    items = measure_overlap(rows, corpus, 3)
    # the hen sat, hen sat it, sat it rained; a b c; "hen sat" is shorter and there as a whole.
    assert [item["shared"] for item in items] == [3, 1, 1, 0]
    assert [item["runs"] for item in items] == [6, 2, 1, 0]
    assert [item["overlap"] for item in items] == [True, True, True, False]
    assert overlap_metrics(items)["overlap"].value == 0.75


def test_runs_do_not_cross_from_one_story_to_the_next() -> None:
    assert not measure_overlap([{"text": "a b c"}], ["a b", "c"], 3)[0]["overlap"]


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=8), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from("abc"), max_size=10), max_size=4),
    st.integers(1, 4),
)
def test_an_item_overlaps_as_a_search_in_every_story_says(
    items: list[list[str]], stories: list[list[str]], n: int
) -> None:
    rows = [{"text": " ".join(words)} for words in items]
    found = measure_overlap(rows, [" ".join(words) for words in stories], n)
    padded = [f" {' '.join(words)} " for words in stories]
    for item, words in zip(found, items, strict=True):
        length = min(n, len(words))
        runs = {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)} - {""}
        shared = {run for run in runs if any(f" {run} " in story for story in padded)}
        assert item["shared"] == len(shared)
        assert item["overlap"] == bool(shared)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"sentences": "One two", "question": "three"}, "One two three"),
        ({"sentences": ["One"], "question": "two"}, "One two"),
        ({"sentences": [["One"]], "question": "XXXXX", "answer": "two"}, "One XXXXX two"),
        ({"ctx_a": "One", "endings": ["two"]}, "One two"),
        ({"ctx_a": None, "ctx_b": "", "endings": ["One"], "label": 0}, "One"),
        ({"ctx_a": "", "ctx_b": "", "endings": ["One", "two"], "label": "x"}, "One two x"),
        ({"ctx_a": "", "ctx_b": "", "endings": {"a": "One"}, "label": 0}, "One"),
    ],
)
def test_a_row_that_only_looks_like_one_of_ours_is_all_its_texts(
    row: dict[str, Any], text: str
) -> None:
    assert item_text(row).split() == text.split()
    assert not measure_overlap([row], ["nothing"], 3)[0]["overlap"]


def test_texts_are_found_at_any_depth() -> None:
    value: Any = "deep"
    for _ in range(5000):
        value = [value]
    assert item_text({"x": value, "y": "flat"}) == "deep flat"
