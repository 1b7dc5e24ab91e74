"""The toy world: its rows have the real schemas, and only the context answers them."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iskd.data.toyworld import ToyWorld, make_toyworld
from iskd.data.toyworld.world import WORDS
from iskd.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SEEDS = st.integers(min_value=0, max_value=2**31)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def class_of(word: str) -> str:
    (found,) = [kind for kind, words in WORDS.items() if word in words]
    return found


def digest(world: ToyWorld) -> str:
    return hashlib.sha256(json.dumps(asdict(world)).encode()).hexdigest()


def small_world(seed: int) -> ToyWorld:
    return make_toyworld(seed, 4, 6, 6, 6)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_cloze_rows_have_the_schema_and_answers_in_the_context(seed: int) -> None:
    for row in small_world(seed).cbt:
        assert set(row) == {"sentences", "question", "answer", "options"}
        assert len(row["sentences"]) == 20
        assert row["question"].count("XXXXX") == 1
        assert len(set(row["options"])) == len(row["options"]) == 10
        assert row["answer"] in row["options"]
        assert {class_of(option) for option in row["options"]} == {class_of(row["answer"])}
        assert row["answer"] in words_of(" ".join(row["sentences"]))
        assert row["answer"] not in words_of(row["question"])


def last_known(sentences: list[str], question: str, answer: str) -> str:
    """Answer a cloze question by reading: who is it about, and what came last for that one."""
    asked = words_of(question)
    kind = class_of(answer)
    owner = asked[0] if asked[0] in WORDS["name"] else None
    found = ""
    for sentence in sentences:
        told = words_of(sentence)
        things = [word for word in told if word in WORDS[kind]]
        speaker = next((word for word in told if word in WORDS["name"]), None)
        if things and (kind != "thing" or speaker == owner):
            found = things[-1]
    return found


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_cloze_answers_follow_from_the_context(seed: int) -> None:
    for row in small_world(seed).cbt:
        assert last_known(row["sentences"], row["question"], row["answer"]) == row["answer"]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_continuation_rows_have_the_schema(seed: int) -> None:
    kinds: dict[str, type] = {
        "ind": int,
        "activity_label": str,
        "ctx_a": str,
        "ctx_b": str,
        "ctx": str,
        "endings": list,
        "source_id": str,
        "split": str,
        "split_type": str,
        "label": str,
    }
    world = small_world(seed)
    for row, story in zip(world.hellaswag, world.heldout, strict=True):
        assert {key: type(value) for key, value in row.items()} == kinds
        assert row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}"
        assert len(set(row["endings"])) == 4
        assert row["label"] in {"0", "1", "2", "3"}
        assert (row["split"], row["split_type"]) == ("val", "indomain")
        assert story == f"{row['ctx']} {row['endings'][int(row['label'])]}"
    assert len({row["source_id"] for row in world.hellaswag}) == len(world.hellaswag)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_each_wrong_ending_differs_from_the_right_one_in_facts_only(seed: int) -> None:
    for row in small_world(seed).hellaswag:
        right = words_of(row["endings"][int(row["label"])])
        for ending in row["endings"]:
            told = words_of(ending)
            assert len(told) == len(right)
            differing = [(a, b) for a, b in zip(told, right, strict=True) if a != b]
            assert all(class_of(a) == class_of(b) for a, b in differing)


@given(seed=SEEDS, rows=st.integers(min_value=0, max_value=23))
@settings(max_examples=25, deadline=None)
def test_labels_are_balanced(seed: int, rows: int) -> None:
    world = make_toyworld(seed, 0, rows, 0, rows)
    counts = Counter(row["label"] for row in world.hellaswag)
    sizes = [counts[label] for label in "0123"]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_the_seed_decides_the_world(seed: int) -> None:
    assert small_world(seed) == small_world(seed)
    assert small_world(seed).train != small_world(seed + 1).train


def test_more_rows_leave_the_stories_alone() -> None:
    few, many = make_toyworld(3, 5, 8, 2, 2), make_toyworld(3, 5, 8, 8, 8)
    assert (few.train, few.heldout) == (many.train, many.heldout)


def test_no_story_is_told_twice() -> None:
    world = make_toyworld(1, 1500, 300, 0, 0)
    assert len({*world.train, *world.heldout}) == 1800


def test_the_world_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib, json; from dataclasses import asdict;"
        "from iskd.data.toyworld import make_toyworld;"
        "world = json.dumps(asdict(make_toyworld(5, 20, 10, 10, 10)));"
        "print(hashlib.sha256(world.encode()).hexdigest())"
    )
    expected = digest(make_toyworld(5, 20, 10, 10, 10))
    for hash_seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_answers_are_spread_over_their_classes() -> None:
    answers: Counter[Any] = Counter(row["answer"] for row in make_toyworld(2, 0, 600, 600, 0).cbt)
    assert len(answers) == sum(len(words) for kind, words in WORDS.items() if kind != "name")
    assert max(answers.values()) < 600 * 0.08


@pytest.mark.parametrize(
    ("counts", "wrong"),
    [
        ((-1, 2, 1, 1), "stories"),
        ((1, -2, 0, 0), "heldout_stories"),
        ((1, 2, -1, 0), "cloze_rows"),
        ((1, 2, 3, 0), "cloze_rows"),
        ((1, 2, 0, 3), "continuation_rows"),
    ],
)
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        make_toyworld(0, *counts)


def test_a_character_has_one_trait_in_every_story() -> None:
    traits: dict[str, set[str]] = {}
    for story in make_toyworld(4, 200, 0, 0, 0).train:
        told = words_of(story.split(".")[0])
        for before, word in pairwise(told):
            if word in WORDS["name"]:
                traits.setdefault(word, set()).add(before)
    assert set(traits) == set(WORDS["name"])
    assert all(len(found) == 1 for found in traits.values())
    assert len({next(iter(found)) for found in traits.values()}) == len(traits)
