"""Stories in JSONL files: reading, writing, splitting."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.data.texts import read_texts, split_texts, write_texts
from iskd.errors import UserError

STORY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(texts=st.lists(STORY, min_size=1, max_size=6))
def test_stories_survive_a_round_trip(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    write_texts(texts, path)
    assert read_texts(path) == texts
    assert path.read_bytes().count(b"\n") == len(texts)


def test_line_ends_inside_a_story_do_not_end_its_row(tmp_path: Path) -> None:
    texts = ["one\ntwo\r\nthree", "next\u2028line\u2029and\x85more\x0b\x0c"]
    write_texts(texts, tmp_path / "texts.jsonl")
    assert read_texts(tmp_path / "texts.jsonl") == texts


def test_blank_lines_and_other_fields_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'\n{"id": 1, "text": "a"}\r\n   \n{"text": "b", "text ": 2}')
    assert read_texts(path) == ["a", "b"]


BROKEN = {
    "not UTF-8": (b'{"text": "caf\xe9"}\n', "not UTF-8"),
    "not UTF-8 far down": (b'{"text": "a"}\n' * 5000 + b"\xff", "not UTF-8"),
    "not JSON": (b'{"text": "a"}\n{"text": \n', "line 2: not a JSON object"),
    "a byte order mark": (b'\xef\xbb\xbf{"text": "a"}\n', "line 1"),
    "a list": (b'["text"]\n', "line 1: no field text"),
    "a number": (b"7\n", "line 1: no field text"),
    "no text": (b'\n\n{"txt": "a"}\n', "line 3: no field text"),
    "text is null": (b'{"text": null}\n', "line 1: no field text"),
    "nested too deep": (b"[" * 100_000 + b"\n", "line 1: not a JSON object"),
    "a number too long": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "line 1: not a JSON"),
    "half a pair": (b'{"text": "a\\ud83d"}\n', "line 1: holds half of a surrogate pair"),
    "empty": (b"", "empty"),
    "blank": (b" \n\n", "empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_users_mistake_reported_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_texts(path)
    text = str(caught.value)
    assert text.startswith("mine.jsonl")
    assert message in text
    assert "\n" not in text
    assert str(tmp_path) not in text


@given(
    texts=st.lists(st.sampled_from("abcdefghij") | STORY, min_size=4, max_size=60),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_is_disjoint_complete_and_ordered(
    texts: list[str], share: float, seed: int
) -> None:
    distinct = len(set(texts))
    count = round(distinct * share)
    if not 0 < count < distinct:
        with pytest.raises(UserError, match="too few"):
            split_texts(texts, share, seed)
        return
    train, heldout = split_texts(texts, share, seed)
    assert not set(train) & set(heldout)
    assert len(set(heldout)) == count
    assert sorted(train + heldout) == sorted(texts)
    for part in (train, heldout):
        assert part == [text for text in texts if text in set(part)]
    assert split_texts(texts, share, seed) == (train, heldout)


@given(order=st.permutations(range(12)), seed=st.integers(0, 100))
def test_sides_do_not_depend_on_the_order_or_on_copies(order: list[int], seed: int) -> None:
    texts = [str(i) for i in range(12)]
    _, heldout = split_texts(texts, 0.25, seed)
    _, again = split_texts([texts[i] for i in order] + texts[:5], 0.25, seed)
    assert set(heldout) == set(again)


def test_another_seed_gives_another_split() -> None:
    texts = [str(i) for i in range(100)]
    assert split_texts(texts, 0.1, 1) != split_texts(texts, 0.1, 2)


def test_unicode_is_written_as_it_is(tmp_path: Path) -> None:
    write_texts(["Zoë 🦊"], tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text("utf-8") == '{"text": "Zoë 🦊"}\n'
    assert json.loads((tmp_path / "t.jsonl").read_bytes()) == {"text": "Zoë 🦊"}


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_texts(tmp_path)
