"""Publishing a folder: all of it or none, whatever happens."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.provenance import artifact
from iskd.provenance.artifact import (
    MANIFEST,
    RUN,
    canonical_json,
    file_digest,
    publish,
    read_manifest,
    staging_folder,
    write_text,
)

from .synthetic import make_request


class Crash(BaseException):
    """Stand for a kill: no ``except Exception`` of the code under test catches it."""


def build(folder: Path, content: str = "new", *, host: str = "here") -> None:
    draft = staging_folder(folder)
    (draft / "b.txt").write_text(content)
    (draft / "sub").mkdir()
    (draft / "sub" / "a.bin").write_bytes(b"\x00\xff")
    publish(
        draft,
        folder,
        request=make_request(rule="r"),
        summary={"loss": 1.5, "content": content},
        run={"host": host},
    )


def state(folder: Path) -> str:
    """Say which artifact lies at a place, and fail for a half one."""
    if not folder.exists():
        return "none"
    manifest = read_manifest(folder)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {MANIFEST, RUN, *manifest.files}
    for name, produced in manifest.files.items():
        assert file_digest(folder / name) == produced.sha256
        assert (folder / name).stat().st_size == produced.size
    content: str = manifest.summary["content"]
    return content


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int, mode: int) -> None:
    draft = staging_folder(tmp_path / "a")
    (draft / "weights").touch(mode=0o600)
    before = os.umask(mask)
    try:
        publish(draft, tmp_path / "a", request=make_request(rule="r"), summary={}, run={})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {mode}


def test_a_manifest_states_what_was_requested_and_what_came_out(tmp_path: Path) -> None:
    build(tmp_path / "deep" / "art")
    manifest = read_manifest(tmp_path / "deep" / "art")
    assert manifest == read_manifest(tmp_path / "deep" / "art" / MANIFEST)
    assert manifest.request == make_request(rule="r")
    assert set(manifest.files) == {"b.txt", "sub/a.bin"}
    assert manifest.files["b.txt"].size == 3
    assert json.loads((tmp_path / "deep" / "art" / RUN).read_text()) == {
        "host": "here",
        "statement": file_digest(tmp_path / "deep" / "art" / MANIFEST),
    }
    assert sorted(os.listdir(tmp_path / "deep")) == ["art"]  # noqa: PTH208
    assert state(tmp_path / "deep" / "art") == "new"


def test_the_same_work_gives_the_same_manifest_anywhere(tmp_path: Path) -> None:
    build(tmp_path / "one", host="alpha")
    build(tmp_path / "two" / "other", host="beta")
    manifests = [(tmp_path / p / MANIFEST).read_bytes() for p in ("one", "two/other")]
    assert manifests[0] == manifests[1]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = artifact.write_text

    def watched(path: Path, text: str) -> None:
        if path.name == MANIFEST:
            files = {p.name for p in path.parent.rglob("*") if p.is_file()}
            assert {"b.txt", "a.bin", RUN} <= files
            assert not (tmp_path / "art").exists()
        done.append(path.name)
        real(path, text)

    monkeypatch.setattr(artifact, "write_text", watched)
    build(tmp_path / "art")
    assert done == [RUN, MANIFEST]


def test_every_file_is_on_disk_before_the_folder_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[str] = set()
    real = artifact.flush

    def watched(path: Path) -> None:
        flushed.add(path.name)
        real(path)

    rename = Path.rename

    def moved(self: Path, target: Path) -> Path:
        if self.name.startswith(".art.partial"):
            assert {"b.txt", "a.bin", f".{MANIFEST}.partial", self.name, "sub"} <= flushed
        return rename(self, target)

    monkeypatch.setattr(artifact, "flush", watched)
    monkeypatch.setattr(Path, "rename", moved)
    build(tmp_path / "art")
    assert tmp_path.name in flushed


def test_an_artifact_replaces_the_whole_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "art"
    build(folder, "old")
    (folder / "stray.txt").write_text("left by somebody")
    build(folder, "new")
    assert state(folder) == "new"
    assert sorted(os.listdir(tmp_path)) == ["art"]  # noqa: PTH208


def test_leftovers_of_a_killed_run_are_cleaned(tmp_path: Path) -> None:
    folder = tmp_path / "art"
    for name in (".art.partial", ".art.old"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "half.bin").write_bytes(b"half")
    build(folder)
    assert state(folder) == "new"
    assert sorted(os.listdir(tmp_path)) == ["art"]  # noqa: PTH208


CALLS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "open"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "open"),
    (shutil, "rmtree"),
]


def crash_at(number: int, patch: pytest.MonkeyPatch, *, after: bool) -> list[str]:
    """Let the ``number``-th call to the file system end the process, before or after its work."""
    calls: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            mine = len(calls)
            if mine == number and not after:
                raise Crash
            result = real(*arguments, **named)
            if mine == number:
                raise Crash
            return result

        return call

    for owner, name in CALLS:
        patch.setattr(owner, name, wrap(name, getattr(owner, name)))
    return calls


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("before", ["none", "old"])
def test_a_crash_at_any_point_leaves_one_artifact_or_none(
    before: str, after: bool, tmp_path: Path
) -> None:
    found = set()
    for number in range(1, 200):
        folder = tmp_path / str(number) / "art"
        folder.parent.mkdir()
        if before == "old":
            build(folder, "old")
        with pytest.MonkeyPatch.context() as patch:
            calls = crash_at(number, patch, after=after)
            try:
                build(folder, "new")
            except Crash:
                crashed = True
            else:
                crashed = False
        found.add(state(folder))
        if not crashed:
            break
        build(folder, "next")
        assert state(folder) == "next"
        assert sorted(os.listdir(folder.parent)) == ["art"]  # noqa: PTH208
    assert not crashed
    assert len(calls) > 15
    assert found == {"none", "new"} | {before}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    for after in (False, True):
        for number in range(1, 20):
            file.write_text("old")
            with pytest.MonkeyPatch.context() as patch:
                crash_at(number, patch, after=after)
                try:
                    write_text(file, "new\n")
                except Crash:
                    pass
                else:
                    break
            assert file.read_text() in ("old", "new\n")
        assert file.read_text() == "new\n"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Text that a file can hold: no half of a surrogate pair.
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner)
    ),
    max_leaves=8,
)


@given(value=JSON)
def test_canonical_json_depends_on_the_value_alone(value: Any) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(i) for i in item] if isinstance(item, list) else item

    assert canonical_json(turned(value)) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": value})


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1], "a": "é"}) == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'


def test_an_artifact_that_cannot_be_moved_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "art"
    build(folder, "old")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.startswith(".art.partial"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space left"):
        build(folder, "new")
    assert state(folder) == "old"
    assert not (tmp_path / ".art.old").exists()


def test_a_crash_between_the_two_moves_leaves_none_and_the_next_job_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "art"
    build(folder, "old")
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if target == folder:
            raise Crash
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            build(folder, "new")
    assert state(folder) == "none"
    assert state(tmp_path / ".art.old") == "old"
    draft = staging_folder(folder)
    assert list(tmp_path.iterdir()) == [draft]
    assert list(draft.iterdir()) == []


def test_a_job_never_builds_in_the_folder_of_another(tmp_path: Path) -> None:
    neighbour = staging_folder(tmp_path / "art2")
    first = staging_folder(tmp_path / "art")
    second = staging_folder(tmp_path / "art")
    assert first != second
    assert sorted(tmp_path.iterdir()) == sorted([neighbour, second])


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock.json").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "lock.json", "new")
    assert (tmp_path / "lock.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["lock.json"]  # noqa: PTH208
