"""Part of the embedded study through `snakemake --profile slurm` on a real SLURM, with faults.

The tests are chapters of one story and run in their order: each waits until a training has saved a
state, does its harm, and sees the training go on. After the last one the study has the bytes of one
that was never disturbed, and no finished job was run twice.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.measured import is_measured
from tests.recompute import read_metrics, recompute
from tests.recompute_paper import check_numbers
from tests.tracker_standin import install as install_tracker
from tests.workflow.conftest import KEPT, Clone, make_clone

from .cluster import ACCOUNT, PARTITION, Cluster, install, wait_until, what_is_missing

pytestmark = pytest.mark.slow

# Long enough for a machine with other work; no speed is claimed by any of them.
PATIENCE = 600.0
RESULTS = "results/embedded"
DRIVER = str(Path(__file__).with_name("driver.py"))
# The study's part that is made here; the rest would meet no other fault.
SEEDS, PART = [17], {"arms": ("iskd", "l1"), "tasks": ("cbt_context",)}
# What is made of all seeds, arms and tasks together begins so.
OF_ALL = re.compile(r"^(collect_|figure_|table_|paper|summarize/|metrics)")
TEACHER = "pretrain_teacher/toy"
OPTIONS = (
    *("--profile", "slurm", "--configfile", "config/config.yaml", "--jobs", "4"),
    # No cluster of this size needs the plugin's patience of 40 s before it looks after a job.
    *("--slurm-init-seconds-before-status-checks", "2", "--slurm-status-command", "squeue"),
    *("--latency-wait", "20", "--max-status-checks-per-second", "1"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    try:
        install()
    except RuntimeError as error:
        pytest.skip(str(error))
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Study:
    """The study's clone, the Snakemake that drives it, and what is seen of it from outside."""

    def __init__(self, clone: Clone, cluster: Cluster) -> None:
        self.clone, self.cluster = clone, cluster
        self.results = clone.folder / RESULTS
        self.calls = 0
        self.driver: subprocess.Popen[bytes] | None = None
        # A `squeue` before the real one, which fails while the file beside it is there.
        tools = clone.folder.parent / "tools"
        tools.mkdir()
        self.broken = tools / "broken"
        real = shutil.which("squeue")
        fail = f"[ -e {self.broken} ] && echo >> {self.broken} && exit 1"
        squeue = f'#!/bin/sh\n{fail}\nexec {real} "$@"\n'
        (tools / "squeue").write_text(squeue, encoding="utf-8")
        (tools / "squeue").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "SLURM_ACCOUNT": ACCOUNT,
            "SLURM_PARTITION": PARTITION,
            "ISKD_STATE_SECONDS": "2",
        }
        # Every report of a run ever seen at a place: start, seconds, SLURM job. (Snakemake touches
        # what a job has made, so times tell nothing.)
        self.seen: dict[str, set[bytes]] = {}
        self.over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over.wait(0.3):
            # Jobs rename and remove folders while they are looked through.
            with suppress(FileNotFoundError):
                for report in self.results.rglob("run.json"):
                    place = report.parent.relative_to(self.results)
                    if not any(part.startswith(".") for part in place.parts):
                        self.seen.setdefault(str(place), set()).add(report.read_bytes())

    def call(self) -> None:
        """Type the command, the same each time."""
        self.calls += 1
        with self.printed.open("wb") as out:
            self.driver = subprocess.Popen(
                [sys.executable, DRIVER, *OPTIONS],
                cwd=self.clone.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def printed(self) -> Path:
        return self.clone.folder.parent / f"call_{self.calls}.txt"

    @property
    def running(self) -> bool:
        return self.driver is not None and self.driver.poll() is None

    def log(self, place: str) -> str:
        """Read the log of the job that makes an artifact."""
        file = self.results / "logs" / f"{place}.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def job(self, place: str) -> str | None:
        """Find the running SLURM job that makes an artifact."""
        return self.cluster.job("rule_" + place.replace("/", "_wildcards_", 1).replace("/", "_"))

    def saved(self, place: str) -> int:
        """Give the newest step whose state is kept."""
        folder = (self.results / place).parent
        states = folder.glob(f".{Path(place).name}.work/*/checkpoint-*/manifest.json")
        return max((int(state.parent.name.split("-")[1]) for state in states), default=0)

    def wait_for_progress(self, place: str) -> str:
        """Wait until a running training has saved a state since its start; give its job."""
        started = re.search(r"resumed after step (\d+)", self.log(place))
        since = int(started[1]) if started else 0
        self.wait(lambda: self.saved(place) > since and self.job(place), f"a state of {place}")
        job = self.job(place)
        assert job is not None
        return job

    def wait_for_resume(self, place: str, before: str) -> None:
        """Wait until another process has taken the training up from a saved state."""
        first = before.splitlines()[0]
        self.wait(
            lambda: (
                not self.log(place).startswith(first) and "resumed after step" in self.log(place)
            ),
            f"{place} to be resumed",
        )

    def wait(self, met: Callable[[], object], what: str) -> None:
        def met_or_over() -> bool:
            assert self.running, f"snakemake has ended before {what}:\n{self.tail()}"
            return bool(met())

        wait_until(met_or_over, PATIENCE, what)

    def tail(self) -> str:
        return self.printed.read_text(encoding="utf-8", errors="replace")[-3000:]


def smaller(folder: Path) -> Clone:
    """Make a clone whose embedded study is a part of what it is."""
    clone = make_clone(folder)
    file = clone.folder / "config/config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["seeds"] = SEEDS
    for section, names in PART.items():
        config[section] = {name: config[section][name] for name in names}
    config["generation"] = config["evaluation"]["efficiency"] = None
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return clone


@pytest.fixture(scope="module")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    study = Study(smaller(tmp_path_factory.mktemp("slurm") / "clone"), cluster)
    study.call()
    yield study
    study.over.set()
    if study.driver is not None and study.running:
        os.killpg(study.driver.pid, signal.SIGKILL)


def scripts(job: str, place: str) -> list[psutil.Process]:
    """Find the processes of a job that run our script."""
    rule, found = Path(place).parts[0], []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = process.environ().get("SLURM_JOB_ID") == job
        except psutil.Error:
            continue
        if ours and any(word.endswith(f".{rule}.py") for word in words):
            found.append(process)
    return found


def test_scancel_of_a_running_job(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    study.cluster.run("scancel", job)
    study.wait_for_resume(TEACHER, before)
    assert study.job(TEACHER) != job
    assert study.calls == 1


def test_kill_9_of_a_jobs_process(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    victims = scripts(job, TEACHER)
    assert victims
    for victim in victims:
        victim.kill()
    study.wait_for_resume(TEACHER, before)
    assert study.calls == 1


def test_time_limit_with_a_warning_signal(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    # Two minutes before the limit SIGTERM comes: with a limit of two minutes, at once.
    study.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    study.wait(lambda: study.job(TEACHER) != job or "SIGTERM" in study.log(TEACHER), "the signal")
    study.wait_for_resume(TEACHER, before)
    assert study.calls == 1


def test_controller_restarted_in_mid_run(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    study.cluster.stop_controller()
    with pytest.raises(TimeoutError):
        wait_until(lambda: not study.running, 15, "a driver that gives up")
    study.cluster.start_controller()
    study.wait(lambda: study.job(TEACHER) == job or study.saved(TEACHER) == 0, "the same job again")
    assert study.log(TEACHER).splitlines()[0] == before.splitlines()[0]


def test_driver_killed_and_started_again(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    assert study.driver is not None
    os.killpg(study.driver.pid, signal.SIGKILL)
    study.driver.wait()
    assert study.job(TEACHER) == job
    study.call()
    study.wait_for_resume(TEACHER, before)
    assert study.job(TEACHER) != job


def release(study: Study, job: str) -> None:
    """Have a requeued job start as soon as it may: SLURM would let it wait for two minutes."""
    study.wait(
        lambda: "PENDING" in study.cluster.run("squeue", "-h", "-j", job, "-o", "%T", check=False),
        "the job in the queue",
    )
    # A node takes no job of which something still runs there.
    study.wait(lambda: not study.cluster.has_processes_of(job), "the end of the job's first start")
    study.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_job_requeued(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    study.cluster.run("scontrol", "requeue", job)
    release(study, job)
    study.wait_for_resume(TEACHER, before)
    assert study.job(TEACHER) == job


def test_node_set_down_and_up(study: Study) -> None:
    job, before = study.wait_for_progress(TEACHER), study.log(TEACHER)
    node = study.cluster.node_of(job)
    study.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    release(study, job)
    study.wait_for_resume(TEACHER, before)
    assert study.cluster.node_of(job) != node
    study.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")


def test_squeue_fails_for_a_while(study: Study) -> None:
    """Longer than the plugin's patience of five attempts, after which it would wait for ever."""
    study.broken.touch()
    try:
        study.wait(lambda: study.broken.stat().st_size > 7, "questions without an answer")
    finally:
        study.broken.unlink()


def test_study_ends_with_the_bytes_of_an_undisturbed_one(study: Study, reference: Path) -> None:
    assert study.driver is not None
    wait_until(lambda: not study.running, 3600, "the study's end")
    assert study.driver.returncode == 0, study.tail()
    # One call more than the first, for the driver that was killed.
    assert study.calls == 2
    ours, theirs = (
        {
            name: file.read_bytes()
            for file in top.rglob("*")
            if file.is_file() and not is_measured(name := file.relative_to(top).as_posix())
        }
        for top in (study.results, reference)
    )
    if any("/seed_18" in name for name in theirs):
        # The whole study's: each artifact of the part is there, and is the same.
        ours = {name: data for name, data in ours.items() if not OF_ALL.search(name)}
        assert set(ours) <= set(theirs)
    else:
        assert set(ours) == set(theirs)
    assert len([name for name in ours if name.endswith("manifest.json")]) > 15
    assert [name for name in ours if ours[name] != theirs[name]] == []
    # What is made of the cluster's numbers follows from them, by other code.
    assert check_numbers(read_metrics(study.results / "metrics.csv"), recompute(study.results)) > 40
    run = json.loads((study.results / TEACHER / "run.json").read_text(encoding="utf-8"))
    assert run["resumed_after_steps"]


@pytest.fixture(scope="module")
def reference(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the same study, undisturbed, or of the whole one that `make test-study` kept."""
    kept = Path(os.environ.get(KEPT, "nowhere"), "embedded", RESULTS)
    if kept.exists():
        return kept
    clone = smaller(tmp_path_factory.mktemp("undisturbed") / "clone")
    wait_until(lambda: not study.running, 3600, "the study's end")
    done = clone.snakemake("-c", "2", "--configfile", "config/config.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    return clone.folder / RESULTS


def test_no_finished_job_was_run_twice(study: Study) -> None:
    assert study.seen
    assert {place: seen for place, seen in study.seen.items() if len(seen) > 1} == {}


def test_account_partition_and_gpus_reached_slurm(study: Study) -> None:
    jobs = study.cluster.run(
        "sacct", "-X", "-n", "-P", "-o", "Account,Partition,AllocTRES,State", "-S", "now-1days"
    ).splitlines()
    assert jobs
    assert {tuple(job.split("|")[:2]) for job in jobs} == {(ACCOUNT, PARTITION)}
    assert any("gres/gpu=1" in job for job in jobs)
    assert any("gres/gpu" not in job for job in jobs)


def test_two_gpus_of_one_node_train_one_model(
    study: Study, cluster: Cluster, tmp_path: Path
) -> None:
    """GPUs that are none: two processes compute on the CPU, but SLURM gives them out."""
    wait_until(lambda: not study.running, PATIENCE, "the study's end")
    clone = make_clone(tmp_path / "clone")
    config = "tests/config/tiny.yaml"
    clone.edit(config, "    family: gpt2\n", "    family: gpt2\n    gpus: 2\n")
    clone.edit(config, "arms:\n", "tracking: {report_to: [trackio]}\narms:\n")
    environment = study.environment | {"PYTHONPATH": str(install_tracker(tmp_path / "packages"))}
    options = ("--profile", "slurm", *OPTIONS[4:], f"results/tiny/{TEACHER}/manifest.json")
    done = clone.snakemake(*options, "--configfile", config, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((clone.folder / "results/tiny" / TEACHER / "run.json").read_text("utf-8"))
    assert run["processes"] == 2
    allocated = cluster.run(
        "sacct", "-X", "-n", "-P", "-o", "NNodes,AllocTRES", "-j", run["slurm_job"]
    )
    assert allocated.startswith("1|")
    assert "gres/gpu=2" in allocated
    # The first of the two processes shows the training to a tracker.
    shown = (clone.folder / "results/tiny/tracking/trackio/rows.jsonl").read_text("utf-8")
    events = [json.loads(line)["event"] for line in shown.splitlines()]
    assert (events[0], events.count("init"), events[-1]) == ("init", 1, "finish")
