"""Times that a copy has mixed up are put in order where nothing else has changed."""

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.provenance.artifact import MANIFEST, file_digest, publish, staging_folder
from iskd.provenance.times import settle_times

from .synthetic import make_request

STUDY = Path("results/s")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(place: str, *inputs: str, content: str = "") -> Path:
    """Publish an artifact of one file; an input that ends in a slash is an artifact's place."""
    folder = STUDY / place
    draft = staging_folder(folder)
    (draft / "big.bin").write_text(content or place)
    files = [STUDY / i / MANIFEST if i.endswith("/") else Path(i) for i in inputs]
    digests = {file.as_posix(): {"sha256": file_digest(file)} for file in files}
    publish(draft, folder, request=make_request(inputs=digests), summary={}, run={})
    return folder


def chain(length: int) -> list[Path]:
    return [make(f"a{n}", *([f"a{n - 1}/"] if n else [])) for n in range(length)]


def test_a_study_below_a_prefix_is_put_in_order_too() -> None:
    folders = chain(2)
    Path("prefix").mkdir()
    Path("results").rename("prefix/results")
    moved = [Path("prefix", folder) for folder in folders]
    set_time(moved[0], 2000.0)
    set_time(moved[1], 1000.0)
    assert settle_times(Path("prefix", STUDY)) == 2
    assert time_of(moved[1]) >= time_of(moved[0])


def set_time(folder: Path, seconds: float) -> None:
    for file in [folder] if folder.is_file() else folder.iterdir():
        os.utime(file, (seconds, seconds))


def time_of(folder: Path) -> float:
    """Give the time of an artifact's oldest file, which is what Snakemake looks at."""
    return min(file.stat().st_mtime for file in folder.iterdir())


def test_a_study_that_is_in_order_keeps_its_times() -> None:
    folders = chain(3)
    for number, folder in enumerate(folders):
        set_time(folder, 1000.0 + number)
    assert settle_times(STUDY) == 0
    assert [time_of(folder) for folder in folders] == [1000.0, 1001.0, 1002.0]


@given(seed=st.integers(0, 10**6), length=st.integers(2, 5))
def test_whatever_the_times_no_artifact_is_older_than_its_inputs(seed: int, length: int) -> None:
    folders, draw = chain(length), random.Random(seed)
    for folder in folders:
        for file in folder.iterdir():
            when = draw.uniform(1000.0, 2000.0)
            os.utime(file, (when, when))
    settle_times(STUDY)
    for before, after in pairwise(folders):
        assert (before / MANIFEST).stat().st_mtime <= time_of(after)
    assert settle_times(STUDY) == 0


def test_what_depends_on_a_changed_manifest_stays_outdated() -> None:
    first, second, third, aside = *chain(3), make("aside", "a0/")
    text = (first / MANIFEST).read_text()
    (first / MANIFEST).write_text(text.replace('"bytes": 2', '"bytes": 3'))
    assert (first / MANIFEST).read_text() != text
    for folder, when in ((first, 2000.0), (second, 1001.0), (third, 1000.0), (aside, 999.0)):
        set_time(folder, when)
    # The third follows the second, which is as the third saw it.
    assert settle_times(STUDY) == 2
    assert time_of(second) == 1001.0
    assert time_of(aside) == 999.0
    assert time_of(first) > time_of(second)
    assert time_of(third) >= time_of(second)


def test_a_file_that_is_no_artifact_counts_by_its_content() -> None:
    Path("data").mkdir()
    corpus = Path("data/corpus.jsonl")
    corpus.write_text("text")
    made = make("split", "data/corpus.jsonl")
    set_time(made, 1000.0)
    assert settle_times(STUDY) == 1
    assert time_of(made) > 1000.0
    corpus.write_text("other text")
    set_time(made, 1000.0)
    assert settle_times(STUDY) == 0
    assert time_of(made) == 1000.0


def test_a_copy_beside_the_artifacts_is_settled_with_its_original() -> None:
    source, collected = make("a0"), make("collect", "a0/", content="x,y")
    copy, stranger = STUDY / "big.bin", STUDY / "notes.txt"
    copy.write_text("x,y")
    stranger.write_text("mine")
    for place, when in ((copy, 1000.0), (stranger, 1000.0), (source, 2000.0), (collected, 3000.0)):
        set_time(place, when)
    assert settle_times(STUDY) == 2
    assert copy.stat().st_mtime >= time_of(source)
    assert stranger.stat().st_mtime == 1000.0


def test_a_benchmark_is_settled_with_its_artifact() -> None:
    source, made = make("a0"), make("deep/a1", "a0/")
    benchmark = STUDY / "benchmarks/deep/a1.jsonl"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("{}")
    for place, when in ((benchmark, 1000.0), (source, 2000.0), (made, 3000.0)):
        set_time(place, when)
    assert settle_times(STUDY) == 2
    assert benchmark.stat().st_mtime >= time_of(source)


def test_inputs_that_are_not_here_leave_the_artifact_alone() -> None:
    outside = Path("elsewhere.jsonl")
    outside.write_text("text")
    made, after = make("split", "elsewhere.jsonl"), make("prepare", "split/")
    outside.unlink()
    set_time(made, 2000.0)
    set_time(after, 1000.0)
    assert settle_times(STUDY) == 1
    assert time_of(made) == 2000.0
    assert time_of(after) > 2000.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"asked": {}}', '{"asked": {"inputs": 3}}'])
def test_a_folder_with_a_broken_manifest_is_left_alone(text: str) -> None:
    first, second = chain(2)
    (first / MANIFEST).write_text(text)
    set_time(second, 1000.0)
    assert settle_times(STUDY) == 0
    assert time_of(second) == 1000.0


def test_drafts_of_running_jobs_are_left_alone() -> None:
    first, second = chain(2)
    draft = STUDY / ".a1.partial"
    second.rename(draft)
    set_time(first, 2000.0)
    set_time(draft, 1000.0)
    assert settle_times(STUDY) == 0
    assert time_of(draft) == 1000.0


def test_without_results_there_are_no_times() -> None:
    assert settle_times(STUDY) == 0
