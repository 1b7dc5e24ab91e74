"""An artifact that has lost a file is no artifact any more, until the file is back."""

from pathlib import Path

import pytest

from iskd.provenance.artifact import MANIFEST, publish, staging_folder
from iskd.provenance.presence import INCOMPLETE, put_aside_incomplete

from .synthetic import make_request


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two artifacts, one of them with a file in a folder of its own."""
    for name in ("one", "two"):
        draft = staging_folder(tmp_path / "rule" / name)
        (draft / "model-00001-of-00002.safetensors.txt").write_text(name)
        (draft / "inner").mkdir()
        (draft / "inner" / "b.txt").write_text(name)
        publish(
            draft, tmp_path / "rule" / name, request=make_request(rule="rule"), summary={}, run={}
        )
    return tmp_path


def test_whole_artifacts_are_left_alone(results: Path) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert put_aside_incomplete(results) == []
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["inner/b.txt", "model-00001-of-00002.safetensors.txt"])
def test_a_lost_file_takes_the_manifest_away_and_gives_it_back(results: Path, name: str) -> None:
    lost = results / "rule/one" / name
    content = lost.read_bytes()
    manifest = (results / "rule/one" / MANIFEST).read_bytes()
    lost.unlink()
    for _ in range(2):
        assert put_aside_incomplete(results) == [lost]
        assert not (results / "rule/one" / MANIFEST).exists()
        assert (results / "rule/one" / INCOMPLETE).read_bytes() == manifest
    assert (results / "rule/two" / MANIFEST).exists()
    lost.write_bytes(content)
    assert put_aside_incomplete(results) == []
    assert (results / "rule/one" / MANIFEST).read_bytes() == manifest
    assert not (results / "rule/one" / INCOMPLETE).exists()


def test_work_in_hand_is_left_alone(results: Path) -> None:
    (results / "rule/one").rename(results / "rule/.one.partial-1")
    (results / "rule/.one.partial-1/inner/b.txt").unlink()
    assert put_aside_incomplete(results) == []
    assert (results / "rule/.one.partial-1" / MANIFEST).exists()


def test_an_artifact_that_is_put_there_in_this_moment_stays(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[results / "rule/one/inner/b.txt"], [], []])
    monkeypatch.setattr("iskd.provenance.presence._lost", lambda _: next(answers))
    assert put_aside_incomplete(results) == []
    assert (results / "rule/one" / MANIFEST).exists()
    assert not (results / "rule/one" / INCOMPLETE).exists()
