"""Run one rule in a clean environment, and without a network where that can be had."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iskd.provenance.artifact import RUN
from iskd.provenance.ledger import PREFIX, STATE_SECONDS

# Of the caller's environment, what a program needs to run at all.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
CONFIG = "recorded.yaml"
"""Name of the config in the folder where a rule is run."""

_POLL_SECONDS = 0.02


def run_rule(
    top: Path, target: str, rule: str, variables: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run the job that makes one target.

    Args:
        top: the folder with the code, the inputs and the config `CONFIG`.
        target: what to make, a path below it.
        rule: the one rule that may run.
        variables: more variables of the environment.
    """
    return subprocess.run(  # noqa: S603 - our own workflow, a checked place
        _command(target, rule),
        cwd=top,
        env={**clean_environment(top), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def _command(target: str, rule: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", target, "--configfile", CONFIG]
    command += ["--cores", "1", "--allowed-rules", rule, "--force", "--nolock"]
    return [*no_network(), *command, "--rerun-incomplete"]


def run_killed(top: Path, target: str, rule: str) -> bool:
    """Run a job until it has saved something, and kill it and Snakemake; False if it was done."""
    run = subprocess.Popen(  # noqa: S603 - our own workflow, a checked place
        _command(target, rule),
        cwd=top,
        env=clean_environment(top) | {STATE_SECONDS: "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while run.poll() is None:
        if any(top.joinpath("results").rglob(f"{PREFIX}*.json")):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True
        time.sleep(_POLL_SECONDS)
    return False


def has_resumed(artifact: Path) -> bool:
    """Tell whether the last run of a job went on from what an earlier one had saved."""
    report = json.loads((artifact / RUN).read_text(encoding="utf-8"))
    return bool(report["resumed_after_steps"] or report["resumed_after_texts"])


def clean_environment(top: Path) -> dict[str, str]:
    """Give the environment of a program that uses the library in a folder."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # The local files of a study are not here, and no job that is made again reads one.
    alone = {"ISKD_PLAN_ONLY": "1"}
    return kept | alone | {"PYTHONPATH": str(top / "scripts"), "PYTHONHASHSEED": "0"}


def no_network() -> Sequence[str]:
    """Give the command that runs another one without any network; empty where there is none."""
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        try:
            done = subprocess.run([*command, "true"], capture_output=True, check=False)  # noqa: S603
        except FileNotFoundError:
            return []
        if done.returncode == 0:
            return command
    return []


def reason_of(ran: "subprocess.CompletedProcess[str]") -> str:
    """Give the line of Snakemake's output that says best why a job failed."""
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    errors = [
        line for line in lines if " failed: " in line or "Exception" in line or "rror" in line
    ]
    return (errors or lines or ["snakemake said nothing"])[-1 if not errors else 0][:300]
