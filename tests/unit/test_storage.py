"""Disks that are full or read-only, and folders that go: one line, and nothing half made.

The jobs run in processes of their own, on small file systems that are mounted for them alone.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from iskd.errors import UserError
from iskd.provenance import storage
from iskd.provenance.artifact import MANIFEST
from iskd.provenance.storage import storage_fault, translate_storage_errors
from iskd.runtime.job import Job, run_rule
from tests.unit.test_job import rule

ROOT = Path(__file__).resolve().parents[2]
# More than any of the small file systems below holds.
BIG = 3_000_000


def big_text(job: Job) -> None:
    (job.out / "a.txt").write_text("x" * BIG)


def big_weights(job: Job) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(BIG)}, job.out / "a.txt")


def big_pickle(job: Job) -> None:
    import torch

    torch.save({"a": torch.zeros(BIG)}, job.out / "a.txt")


def big_table(job: Job) -> None:
    import pandas

    pandas.DataFrame({"a": range(BIG)}).to_csv(job.out / "a.txt")


def big_tokenizer(job: Job) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {f"word {number}": number for number in range(BIG // 10)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(job.out / "a.txt"))


def fill_up(folder: Path) -> None:
    """Leave no byte of a file system."""
    with suppress(OSError), (folder / "filling").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0


def no_room_for_the_manifest(job: Job) -> None:
    (job.out / "a.txt").write_text("x")
    fill_up(job.out)


def no_room_for_the_log(job: Job) -> None:
    (job.out / "a.txt").write_text("x")
    fill_up(Path("results/logs"))
    for _ in range(2000):
        job.log.info("a line that does not fit")


def training_state(job: Job) -> None:
    from tests.unit.test_workdir import train

    train(job.work)


def small_text(job: Job) -> None:
    (job.out / "a.txt").write_text("x")


def copied_text(job: Job) -> None:
    small_text(job)
    (job.out / "metrics.csv").write_text("a,b\n1,2\n")


def copied_big_text(job: Job) -> None:
    small_text(job)
    (job.out / "metrics.csv").write_text("x" * BIG)


def without_work(job: Job) -> None:
    small_text(job)
    shutil.rmtree(job.work.path)


def without_draft(job: Job) -> None:
    small_text(job)
    shutil.rmtree(job.out)


def without_draft_for_weights(job: Job) -> None:
    shutil.rmtree(job.out)
    big_weights(job)


def without_draft_for_a_pickle(job: Job) -> None:
    shutil.rmtree(job.out)
    big_pickle(job)


def without_results(job: Job) -> None:
    shutil.rmtree("results")
    small_text(job)


def without_work_for_a_state(job: Job) -> None:
    from tests.unit.test_workdir import train

    def remove(step: int, total: int) -> None:
        del total
        if step == 3:
            shutil.rmtree(job.work.path)
        assert step < 5, "it trains on, and nothing of it can be published"

    train(job.work, remove)


def taken_over(job: Job) -> None:
    """Lose the work folder, then let another job run from start to end."""
    (job.out / "a.txt").write_text("of the first")
    shutil.rmtree(job.work.path)
    print("removed", flush=True)
    sys.stdin.readline()


def second(job: Job) -> None:
    (job.out / "a.txt").write_text("of the second")
    print("begun", flush=True)
    sys.stdin.readline()


def run_job(name: str, *outputs: str, log: str = "results/logs/make.log") -> None:
    """Run one of the jobs above; the child processes of these tests begin here."""
    body: Callable[[Job], None] = globals()[name]
    output = {"a": "results/make/a.txt"} | {f"o{n}": path for n, path in enumerate(outputs)}
    with run_rule(rule(output, log=log)) as job:
        body(job)


@dataclass
class Ended:
    """How a job ended, and what it left below results/."""

    code: int
    output: str
    left: set[str]

    def check(self, *parts: str) -> None:
        """Check that it failed in one line with these parts, and left nothing half made."""
        assert self.code == 1, self.output
        assert self.output.count("\n") == 1, self.output
        assert "Traceback" not in self.output
        for part in ("make: ", *parts):
            assert part in self.output
        published = {path for path in self.left if MANIFEST in path and ".work/" not in path}
        assert published == set()
        assert [path for path in self.left if "partial" in path or ".old" in path] == []


def command(name: str, *outputs: str, **named: str) -> list[str]:
    call = f"test_storage.run_job(*{(name, *outputs)!r}, **{named!r})"
    return [sys.executable, "-c", f"from tests.unit import test_storage; {call}"]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}",
    "ISKD_STATE_SECONDS": "0",
    # A child that is to write logs only must not tell of progress on the screen.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@cache
def namespace() -> list[str] | None:
    """Find the command that runs another one where it may mount, unseen by all others."""
    for found in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        try:
            done = subprocess.run(
                [*found, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
            )
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return found
    return None


def run_on(folder: Path, mounts: Sequence[str], job: list[str]) -> Ended:
    """Run a job after shell commands that mount something, and list what it leaves."""
    prefix = namespace()
    if prefix is None:
        pytest.skip("no file system can be mounted here, not even in a namespace")
    (folder / "results").mkdir()
    script = " && ".join([*mounts, '{ "$@"; code=$?; find results | sed s/^/left:/; exit $code; }'])
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *job],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    left = {line[5:] for line in done.stdout.splitlines() if line.startswith("left:")}
    assert "results" in left, done.stderr
    return Ended(done.returncode, done.stderr, left)


def tmpfs(folder: str, options: str) -> str:
    return f"mkdir -p {folder} && mount -t tmpfs -o {options} tmpfs {folder}"


@pytest.mark.parametrize(
    "job",
    [
        "big_text",
        "big_weights",
        "big_pickle",
        "big_table",
        "big_tokenizer",
        "no_room_for_the_manifest",
        "no_room_for_the_log",
    ],
)
def test_a_full_disk_is_reported_in_one_line_whoever_fills_it(job: str, tmp_path: Path) -> None:
    ended = run_on(tmp_path, [tmpfs("results", "size=1m")], command(job))
    ended.check("the disk is full: results/.make.", "free some space", "call snakemake again")
    assert "results/make" not in ended.left
    assert "results/.make.work" not in ended.left


def test_a_full_disk_stops_a_training_that_saves_its_state(tmp_path: Path) -> None:
    ended = run_on(tmp_path, [tmpfs("results", "size=300k")], command("training_state"))
    ended.check("the disk is full: results/.make.")
    # A state that was saved whole is kept, the one that did not fit is gone.
    states = {path for path in ended.left if Path(path).name.startswith("checkpoint-")}
    assert states
    assert {f"{state}/{MANIFEST}" for state in states} <= ended.left


@pytest.mark.parametrize("log", ["results/logs/make.log", "results/make.log"])
def test_a_log_that_cannot_be_opened(log: str, tmp_path: Path) -> None:
    # One inode is the top folder's, so that no file or folder can be made.
    mounts = [tmpfs("results", "size=1m,nr_inodes=1")]
    ended = run_on(tmp_path, mounts, command("small_text", log=log))
    ended.check("its log cannot be opened", "the disk is full: ", log.removesuffix("/make.log"))
    assert ended.left == {"results"}


def test_a_log_that_is_cut_short_is_reported(tmp_path: Path) -> None:
    mounts = [tmpfs("results/logs", "size=64k")]
    ended = run_on(tmp_path, mounts, command("no_room_for_the_log"))
    assert (ended.code, ended.output) == (
        0,
        "results/logs/make.log lacks lines: No space left on device\n",
    )
    assert f"results/make/{MANIFEST}" in ended.left


def test_a_full_disk_where_the_work_folder_should_be(tmp_path: Path) -> None:
    mounts = [tmpfs("results", "size=1m,nr_inodes=1")]
    ended = run_on(tmp_path, mounts, command("small_text", log="make.log"))
    ended.check("the disk is full: results/.make.work")
    assert ended.left == {"results"}
    assert (tmp_path / "make.log").read_text().count("\n") == 1


COPY = "results/deep/metrics.csv"


def test_a_copy_that_does_not_fit_stops_the_artifact_too(tmp_path: Path) -> None:
    ended = run_on(tmp_path, [tmpfs("results/deep", "size=1m")], command("copied_big_text", COPY))
    ended.check("the disk is full: ")
    assert "results/make" not in ended.left
    assert COPY not in ended.left


def read_only(folder: str) -> str:
    return f"{tmpfs(folder, 'size=1m')} && mount -o remount,ro {folder}"


def test_a_copy_onto_a_read_only_disk_stops_the_artifact_too(tmp_path: Path) -> None:
    ended = run_on(tmp_path, [read_only("results/deep")], command("copied_text", COPY))
    ended.check("the file system is read-only: results/deep/", "mounted for writing")
    assert "results/make" not in ended.left


@pytest.mark.parametrize(
    ("log", "where"),
    [("results/logs/make.log", "results/logs"), ("make.log", "results/.make.work")],
)
def test_a_read_only_disk(log: str, where: str, tmp_path: Path) -> None:
    ended = run_on(tmp_path, [read_only("results")], command("small_text", log=log))
    ended.check(f"the file system is read-only: {where}", "mounted for writing")
    assert ended.left == {"results"}


def without_roots_rights() -> list[str]:
    """Give the command that runs another one which must obey the modes of files."""
    if os.geteuid() != 0:
        return []
    rights = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    try:
        done = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("root may write everywhere, and setpriv is not here")
    if done.returncode != 0:
        pytest.skip("root may write everywhere, and setpriv cannot change that")
    return prefix


def run_here(folder: Path, job: list[str]) -> Ended:
    done = subprocess.run(
        job, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    results = folder / "results"
    left = {path.relative_to(folder).as_posix() for path in results.rglob("*")}
    return Ended(done.returncode, done.stderr, left)


def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o555)
    prefix = without_roots_rights()
    for log, where in (("results/logs/make.log", "results/logs"), ("make.log", "results/.make.w")):
        ended = run_here(tmp_path, [*prefix, *command("small_text", log=log)])
        ended.check(f"no permission: {where}", "check owner and mode")
        assert ended.left == set()


@pytest.mark.parametrize(
    ("job", "gone"),
    [
        ("without_work", "results/.make.work"),
        ("without_draft", "results/.make.partial-"),
        ("without_draft_for_weights", "results/.make.partial-"),
        ("without_draft_for_a_pickle", "results/.make.partial-"),
        ("without_results", "results/.make."),
        ("without_work_for_a_state", "results/.make.work"),
    ],
)
def test_a_folder_that_is_removed_meanwhile_is_named(job: str, gone: str, tmp_path: Path) -> None:
    ended = run_here(tmp_path, command(job))
    ended.check(f"{gone}", "was removed while the job ran", "leave the hidden folders")
    assert not any("make/" in path for path in ended.left)
    again = run_here(tmp_path, command("small_text"))
    assert (again.code, again.output) == (0, "")
    # Nothing of the failed one is in the way.
    assert {path for path in again.left if "logs" not in path} == {
        "results/make",
        "results/make/a.txt",
        f"results/make/{MANIFEST}",
        "results/make/run.json",
    }


@pytest.mark.parametrize("first_ends", ["first", "last"])
def test_a_job_whose_lock_is_another_ones_publishes_nothing(
    first_ends: str, tmp_path: Path
) -> None:
    def start(name: str, log: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command(name, log=log),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(job: "subprocess.Popen[str]") -> tuple[int, str]:
        _, output = job.communicate("go on\n")
        return job.returncode, output

    with start("taken_over", "one.log") as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "removed\n"
        with start("second", "two.log") as two:
            assert two.stdout is not None
            assert two.stdout.readline() == "begun\n"
            if first_ends == "first":
                code, output = end(one)
                assert end(two) == (0, "")
            else:
                assert end(two) == (0, "")
                code, output = end(one)
    assert code == 1
    assert output.count("\n") == 1
    assert "results/.make.work was removed" in output
    assert "nothing is published" in output
    assert (tmp_path / "results/make/a.txt").read_text() == "of the second"
    assert os.listdir(tmp_path / "results") == ["make"]  # noqa: PTH208


def raised(message: str, kind: type[Exception] = Exception) -> Exception:
    return kind(message)


RUST = 'Error while serializing: I/O error: Read-only file system (os error 30) at path "/a/b"'


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), "the disk quota is used up: a/b; "),
        (OSError(errno.EIO, "Input/output error", "a/b"), "the disk fails"),
        (OSError(errno.ESTALE, "Stale file handle", "a/b"), "the file server has lost it"),
        (OSError(errno.ENOLCK, "No locks available", "a/b"), "the file system gives no locks"),
        (PermissionError(errno.EPERM, "Operation not permitted", "a/b"), "no permission: a/b; "),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), "no permission: a/b; "),
        (raised(RUST), "the file system is read-only: /a/b; "),
        (raised("open file failed with strerror: Read-only file system"), "is read-only: "),
        (raised("[enforce fail at inline_container.cc:672] . unexpected pos"), "is a disk full?"),
    ],
)
def test_what_the_system_says(error: Exception, message: str, tmp_path: Path) -> None:
    assert message in str(storage_fault(error, [tmp_path]))
    with pytest.raises(UserError) as caught, translate_storage_errors([tmp_path]):
        raise RuntimeError("wrapped by a library") from error
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
        PermissionError(errno.EACCES, "Permission denied"),  # a socket's: no path
        OSError("a library's own text"),
        raised("No such file or directory (os error 2)"),
        UserError("cannot be mended by space (os error 28)"),
    ],
)
def test_what_is_no_fault_of_the_storage_is_handed_on(error: Exception, tmp_path: Path) -> None:
    assert storage_fault(error, [tmp_path]) is None
    with pytest.raises(type(error)) as caught, translate_storage_errors([tmp_path]):
        raise error
    assert caught.value is error


def test_an_error_that_was_handled_does_not_hide_a_later_bug(tmp_path: Path) -> None:
    places: dict[str, int] = {}

    def fall_back(handled: OSError) -> None:
        try:
            raise handled
        except OSError:
            places["a key that is not there"] += 1

    def failed(handled: OSError) -> KeyError:
        with pytest.raises(KeyError) as caught:
            fall_back(handled)
        return caught.value

    refused = failed(PermissionError(errno.EACCES, "Permission denied", "a/b"))
    assert storage_fault(refused, [tmp_path]) is None
    full = failed(OSError(errno.ENOSPC, "No space left on device", "a/b"))
    assert storage_fault(full, [tmp_path]) is not None


def test_a_write_without_a_name_is_traced_to_the_folder_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr(
        storage, "_refusal", lambda folder: errno.ENOSPC if folder == full else None
    )
    error = OSError(errno.ENOSPC, "No space left on device")
    assert f"the disk is full: {full}; " in str(storage_fault(error, [tmp_path, full]))
    silent = raised("[enforce fail at inline_container.cc:672] . unexpected pos", RuntimeError)
    assert f"the disk is full: {full}; " in str(storage_fault(silent, [tmp_path, full]))


def test_asking_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    assert storage._refusal(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert storage._refusal(tmp_path / "gone") == errno.ENOENT
