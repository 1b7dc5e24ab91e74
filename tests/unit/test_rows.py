"""Reading, checking, sampling and writing the rows of tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.data.row_kinds import read_rows
from iskd.data.rows import sample_indices, sample_rows, write_rows
from iskd.errors import UserError
from iskd.evaluation.kinds import KINDS

CBT = {
    "sentences": ["A fox met a hen .", "It was late ."],
    "question": "The XXXXX ran home .",
    "answer": "hen",
    "options": ["fox", "hen", "barn"],
}
HELLASWAG = {
    "activity_label": "Cooking",
    "ctx_a": "A man stands at a stove.",
    "ctx_b": "he",
    "endings": ["stirs.", "flies.", "sings.", "melts."],
    "label": "2",
}
TEXT = st.text(max_size=20)


@st.composite
def cbt_rows(draw: st.DrawFn) -> dict[str, Any]:
    options = draw(st.lists(TEXT, min_size=2, max_size=10))
    return {
        "sentences": draw(st.lists(TEXT, min_size=1, max_size=3)),
        "question": draw(TEXT) + "XXXXX" + draw(TEXT),
        "answer": draw(st.sampled_from(options)),
        "options": options,
        "extra": draw(st.none() | st.integers() | TEXT),
    }


@given(rows=st.lists(cbt_rows(), min_size=1, max_size=5))
def test_rows_survive_a_round_trip(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    write_rows(path, rows)
    assert read_rows(path, "cbt_question") == rows
    first = path.read_bytes()
    write_rows(path, read_rows(path, "cbt_context"))
    assert path.read_bytes() == first


@given(count=st.integers(1, 60), n=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_a_sample_keeps_order_size_and_itself(count: int, n: int, seed: int) -> None:
    rows = [{"id": number} for number in range(count)]
    sample = sample_rows(rows, n, seed)
    ids = [row["id"] for row in sample]
    assert len(ids) == min(n, count)
    assert ids == sorted(set(ids))
    assert sample_rows(rows, n, seed) == sample
    assert sample_rows(sample, n, seed) == sample
    assert sample_indices(count, n, seed) == ids


def test_a_sample_is_not_the_head_and_depends_on_the_seed() -> None:
    draws = {tuple(sample_indices(1000, 50, seed)) for seed in range(5)}
    assert len(draws) == 5
    assert all(max(draw) > 700 and min(draw) < 300 for draw in draws)


def test_every_row_is_equally_likely() -> None:
    hits = [0] * 10
    for seed in range(2000):
        for index in sample_indices(10, 3, seed):
            hits[index] += 1
    assert all(abs(hit - 600) < 100 for hit in hits)  # five standard deviations


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        sample_rows([{}], 0, 1)


@pytest.mark.parametrize("label", [0, 3, "0", "3"])
def test_hellaswag_labels_may_be_numbers_or_strings(label: object, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{**HELLASWAG, "label": label}])
    assert read_rows(path, "hellaswag")[0]["label"] == label


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("cbt_question", {"sentences": "one"}, "'sentences' must be a list of strings"),
        ("cbt_question", {"sentences": []}, "'sentences' has 0 entries"),
        ("cbt_question", {"question": 3}, "'question' must be a string"),
        ("cbt_context", {"question": "No blank ."}, "'question' has no XXXXX: put it"),
        ("cbt_question", {"answer": None}, "'answer' must be a string"),
        ("cbt_question", {"answer": "Hen"}, "'answer' is not among the options"),
        ("cbt_question", {"options": ["hen", 1]}, "'options' must be a list of strings"),
        ("cbt_question", {"options": ["hen"]}, "'options' has 1 entries, at least 2"),
        ("hellaswag", {"ctx_b": None}, "'ctx_b' must be a string"),
        ("hellaswag", {"endings": ["a", "b", "c"]}, "'endings' has 3 entries, at least 4"),
        ("hellaswag", {"endings": ["a", "b", "c", " "]}, "'endings' holds an empty text"),
        ("hellaswag", {"label": 4}, "'label' is '4', out of range"),
        ("hellaswag", {"label": "-1"}, "'label' is '-1', out of range"),
        ("hellaswag", {"label": "two"}, "'label' is 'two', out of range"),
        ("hellaswag", {"label": ""}, "use the validation split"),
        ("hellaswag", {"label": True}, "'label' must be a whole number"),
        ("hellaswag", {"label": 1.0}, "'label' must be a whole number"),
    ],
)
def test_a_broken_row_is_named(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = HELLASWAG if kind == "hellaswag" else CBT
    path = tmp_path / "rows.jsonl"
    write_rows(path, [good, {**good, **change}])
    with pytest.raises(UserError) as caught:
        read_rows(path, kind)
    line = str(caught.value)
    assert line.startswith(f"{path}, line 2: field ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_field_that_a_kind_names_is_needed(kind: str, tmp_path: Path) -> None:
    good = HELLASWAG if kind == "hellaswag" else CBT
    path = tmp_path / "rows.jsonl"
    write_rows(path, [good])
    assert read_rows(path, kind) == [good]
    for field in KINDS[kind].fields:
        write_rows(path, [{key: value for key, value in good.items() if key != field}])
        with pytest.raises(UserError, match=f"line 1: field '{field}' is missing"):
            read_rows(path, kind)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no rows"),
        (b"\n  \n", "holds no rows"),
        (b'\n{"a": 1\n', "line 2: broken JSON"),
        (b"[1]\n", "line 1: holds a list"),
        (b'{"a": "\xff"}\n', "line 1: byte 8 is not UTF-8"),
        (b'{"a": "\\ud800"}\n', "line 1: holds half of a surrogate pair"),
        (b"[" * 100_000, "line 1: broken JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: broken JSON (Exceeds the limit"),
    ],
)
def test_a_broken_file_is_named(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_rows(path, "cbt_question")
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read \(No such file"):
        read_rows(tmp_path / "nothing.jsonl", "hellaswag")
    with pytest.raises(UserError, match="use one of cbt_question, cbt_context, hellaswag"):
        read_rows(tmp_path / "nothing.jsonl", "cbt")


def test_line_separators_of_unicode_and_windows_do_not_split_rows(tmp_path: Path) -> None:
    row = {**CBT, "sentences": ["one\u2028two\x85three"]}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert read_rows(path, "cbt_context") == [row]
