"""Pinned commits and their lock file; no test opens a connection."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from iskd.data import hub
from iskd.data.hub import RepoKind, fetch_model, fetch_rows, locked_revision
from iskd.errors import UserError
from iskd.provenance.artifact import canonical_json

COMMIT = "0123456789" * 4


class Newest:
    """Answer like the hub, with another commit every time, and count the questions."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []

    def __call__(self, repo: str, kind: RepoKind) -> str:
        self.requests.append((repo, kind))
        return f"{len(self.requests):040x}"


def never(repo: str, kind: RepoKind) -> str:
    raise AssertionError("the hub was queried")


def test_the_config_decides_first_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "hub.lock.json"
    assert locked_revision("a/b", "model", COMMIT, lock, never) == COMMIT
    assert not lock.parent.exists()


def test_the_lock_decides_second(tmp_path: Path) -> None:
    lock = tmp_path / "hub.lock.json"
    lock.write_text(json.dumps({"model:a/b": COMMIT}))
    before = lock.read_bytes()
    assert locked_revision("a/b", "model", None, lock, never) == COMMIT
    assert lock.read_bytes() == before


def test_the_newest_is_looked_up_once_and_locked(tmp_path: Path) -> None:
    lock, newest = tmp_path / "results" / "hub.lock.json", Newest()
    first = locked_revision("z/z", "dataset", None, lock, newest)
    again = locked_revision("z/z", "dataset", None, lock, newest)
    other = locked_revision("z/z", "model", None, lock, newest)
    locked_revision("a", "model", None, lock, newest)
    assert first == again != other
    assert newest.requests == [("z/z", "dataset"), ("z/z", "model"), ("a", "model")]
    known = json.loads(lock.read_text())
    assert known == {"dataset:z/z": first, "model:z/z": other, "model:a": f"{3:040x}"}
    assert lock.read_text() == canonical_json(known)
    assert [p.name for p in lock.parent.iterdir() if "partial" in p.name] == []


def test_many_threads_ask_once(tmp_path: Path) -> None:
    lock, newest = tmp_path / "hub.lock.json", Newest()
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(locked_revision, f"r/{i % 3}", "model", None, lock, newest)
            for i in range(24)
        ]
    found = [job.result() for job in jobs]
    assert len(newest.requests) == 3
    assert all(found[i] == found[i % 3] for i in range(24))
    assert len(json.loads(lock.read_text())) == 3


def test_several_processes_ask_once(tmp_path: Path) -> None:
    program = (
        "import sys, uuid, time\n"
        "from pathlib import Path\n"
        "from iskd.data.hub import locked_revision\n"
        "def newest(repo, kind):\n"
        "    time.sleep(0.3)\n"
        "    return uuid.uuid4().hex\n"
        "print(locked_revision('a/b', 'model', None, Path(sys.argv[1]), newest))\n"
    )
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "hub.lock.json")],
            env={"PYTHONPATH": str(scripts)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = {job.communicate(timeout=60)[0].strip() for job in jobs}
    assert len(found) == 1
    assert len(found.pop()) == 32


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_broken_lock_is_a_users_mistake(content: str, tmp_path: Path) -> None:
    lock = tmp_path / "hub.lock.json"
    lock.write_text(content)
    with pytest.raises(UserError, match=r"hub\.lock\.json: broken"):
        locked_revision("a/b", "model", None, lock, never)
    assert lock.read_text() == content


def test_a_hub_that_cannot_be_reached_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport_error = hub._HUB_ERRORS[1]

    def repo_info(*_: Any, **__: Any) -> None:
        raise transport_error("[Errno 111] Connection refused")

    monkeypatch.setattr(hub.HfApi, "repo_info", repo_info)
    with pytest.raises(UserError, match=r"a/b could not be fetched.*refused.*snakemake prefetch"):
        locked_revision("a/b", "model", None, tmp_path / "hub.lock.json")
    assert not (tmp_path / "hub.lock.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("No snapshot.\nLonger story."),
        HFValidationError("Repo id must be in the form ..."),
        ConnectionError(),
        OSError(28, "No space left on device"),
        ValueError("   "),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_goes_wrong_while_fetching_is_reported_in_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError) as caught:
        fetch_model("a/b", COMMIT, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"a/b could not be fetched ({type(error).__name__}")
    assert "Longer story" not in message
    assert "\n" not in message


def test_a_bug_is_not_taken_for_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(TypeError):
        fetch_model("a/b", COMMIT, tmp_path)


@pytest.mark.parametrize("files", [["config.json", "pytorch_model.bin"], ["a.safetensors"]])
def test_a_model_must_have_weights_in_safetensors(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: dict[str, Any] = {}

    def snapshot_download(repo: str, **options: Any) -> None:
        passed.update(options, repo=repo)
        for name in files:
            (tmp_path / name).touch()

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    if "a.safetensors" in files:
        fetch_model("a/b", COMMIT, tmp_path)
    else:
        with pytest.raises(UserError, match="no weights in safetensors"):
            fetch_model("a/b", COMMIT, tmp_path)
    assert (passed["repo"], passed["revision"], passed["local_dir"]) == ("a/b", COMMIT, tmp_path)
    assert not any(
        Path(f"x{ending}").match(pattern)
        for ending in (".bin", ".pt", ".pkl", ".py", ".msgpack", ".h5")
        for pattern in passed["allow_patterns"]
    )


def test_rows_are_read_from_the_front_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    passed: dict[str, Any] = {}

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        passed.update(options, arguments=arguments)
        return ({"text": str(i)} for i in range(5))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [r["text"] for r in fetch_rows("a/b", "CN", "test", COMMIT, 2)] == ["0", "1"]
    assert len(list(fetch_rows("a/b", None, "test", COMMIT, None))) == 5
    assert passed["arguments"] == ("a/b", None)
    assert (passed["split"], passed["revision"], passed["streaming"]) == ("test", COMMIT, True)


def test_rows_that_break_off_are_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken(*_: Any, **__: Any) -> Any:
        yield {"text": "a"}
        raise OSError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    rows = fetch_rows("a/b", None, "test", COMMIT, None)
    assert next(rows) == {"text": "a"}
    with pytest.raises(UserError, match="reset by peer"):
        next(rows)
