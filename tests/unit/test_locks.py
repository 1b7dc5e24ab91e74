"""Locks: who holds one, and whom a newcomer may ask to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from iskd.runtime.locks import ask_to_stop, read_holder, take_lock


def holder(process: "subprocess.Popen[str]", **change: Any) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": psutil.Process(process.pid).create_time(),
        "slurm_job": None,
        **change,
    }


@pytest.fixture
def sleeper() -> Any:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as p:
        yield p
        p.kill()


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    descriptor = take_lock(tmp_path / "lock")
    assert descriptor is not None
    found = json.loads((tmp_path / "lock").read_bytes())
    os.close(descriptor)
    assert found["pid"] == os.getpid()
    assert found["host"] == socket.gethostname()
    assert read_holder(tmp_path / "lock") == found


def test_a_shorter_holder_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("x" * 4000)
    descriptor = take_lock(tmp_path / "lock")
    assert descriptor is not None
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    os.close(descriptor)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\xff"])
def test_a_lock_that_says_nothing_has_no_holder(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content, encoding="latin-1")
    assert read_holder(tmp_path / "lock") is None


def test_a_process_of_this_host_is_signalled(sleeper: "subprocess.Popen[str]") -> None:
    assert ask_to_stop(holder(sleeper)) == f"process {sleeper.pid}"
    assert sleeper.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    "change",
    [{"host": "elsewhere"}, {"started": 1.0}, {"pid": "no number"}, {"pid": 2**22 + 1}],
    ids=str,
)
def test_no_other_process_is_hit(sleeper: "subprocess.Popen[str]", change: dict[str, Any]) -> None:
    assert ask_to_stop(holder(sleeper, **change)) is None
    assert sleeper.poll() is None


def fake_scancel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" > {folder}/cancelled\n')
    (folder / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder / "cancelled"


def test_a_slurm_job_is_cancelled(
    sleeper: "subprocess.Popen[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = fake_scancel(tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert ask_to_stop(holder(sleeper, slurm_job="7")) == "SLURM job 7"
    assert cancelled.read_text() == "7\n"


@pytest.mark.parametrize("job", ["8", "7; rm -r x", "--help"])
def test_neither_this_very_job_nor_what_is_no_job_is_cancelled(
    sleeper: "subprocess.Popen[str]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    cancelled = fake_scancel(tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert ask_to_stop(holder(sleeper, slurm_job=job)) is None
    assert not cancelled.exists()
    assert sleeper.poll() is None
