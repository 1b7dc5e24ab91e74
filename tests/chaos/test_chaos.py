"""A study that is killed again and again, wherever it hurts, ends with the undisturbed one's bytes.

`make test-chaos` asks for fifty kills (``ISKD_KILLS``). After each of them, the same command is
called again, and nothing else is done.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ..workflow.conftest import Clone, check_same_results, make_clone

CALL = ("--configfile", "tests/config/chaos.yaml", "-c", "2")
RESULTS = Path("results/chaos")
KILLS = int(os.environ.get("ISKD_KILLS", "8"))
STATE = r"^os\.rename .*/checkpoint-\d+/manifest\.json$"
RECORDED = r"^os\.rename .*/answers-\d+\.json$"
ANSWER = r"^open .*/answers\.jsonl ab?$"
SEALED = r"^os\.rename .*\.partial-\w+/manifest\.json$"


class Aim(NamedTuple):
    """A moment to kill at: when a job is about to do something, for the n-th time, and a delay.

    Each job is a process of its own, and counts for itself.
    """

    pattern: str
    most: int = 1
    delay: float = 0.0


AIMS = {
    "a job starts": Aim(r"^os\.mkdir .*\.partial-\w+ ", 1, 3.0),
    "anywhere": Aim(f"{STATE}|{ANSWER}|{RECORDED}|{SEALED}", 6, 1.5),
    "a state is begun": Aim(r"^os\.mkdir .*/checkpoint-\d+ ", 6),
    "a state is half written": Aim(r"^os\.mkdir .*/checkpoint-\d+ ", 6, 0.05),
    "a state is completed": Aim(STATE, 6),
    "answers are kept": Aim(ANSWER, 8),
    "an artifact is sealed": Aim(SEALED, 1),
    "the old artifact is moved aside": Aim(r"^os\.rename .* \S*\.old$"),
    "between the old artifact and the new": Aim(r"^os\.rename \S*\.partial-\w+ "),
    "the work folder is removed": Aim(r"^shutil\.rmtree \S*\.work "),
}
# Once per study, near its end: armed along with every other aim.
LAST = {"metrics.csv": Aim(r"^os\.rename .* \S*/metrics\.csv$")}
SCOPES = ("all", "job", "all", "snakemake", "all")


class Kill(NamedTuple):
    aim: str
    times: int
    delay: float
    scope: str


def schedule(seed: int) -> Iterator[Kill]:
    """Draw kills for ever, each aim as often as the others."""
    draw = random.Random(seed)
    scopes = cycle(SCOPES)
    while True:
        for name in draw.sample(sorted(AIMS), len(AIMS)):
            aim = AIMS[name]
            yield Kill(name, draw.randint(1, aim.most), draw.uniform(0, aim.delay), next(scopes))


class Chaos:
    """A clone whose study is killed, and what that has done so far."""

    def __init__(self, clone: Clone, folder: Path) -> None:
        self.clone = clone
        self.folder = folder
        self.groups: list[int] = []
        self.kills: Counter[tuple[str, str]] = Counter()
        self.resumed: Counter[str] = Counter()
        self.last_hit = False
        hook = folder / "hook"
        hook.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("killer.py"), hook / "sitecustomize.py")

    def call(self, kill: Kill | None) -> str | None:
        """Call Snakemake, with a kill planned or without; name what was hit, if it did not end."""
        plan = self.folder / "plan.json"
        note = self.folder / f"kill {len(self.groups)}"
        aims = {} if kill is None else {kill.aim: (AIMS[kill.aim], kill.times, kill.delay)}
        if kill is not None and not self.last_hit:
            aims |= {name: (aim, 1, 0.0) for name, aim in LAST.items()}
        content: dict[str, Any] = {
            "aims": [
                {"name": name, "pattern": aim.pattern, "count": count, "delay": delay}
                for name, (aim, count, delay) in aims.items()
            ],
            "scope": "all" if kill is None else kill.scope,
            "note": str(note),
            "states": str(self.folder / "states"),
        }
        plan.write_text(json.dumps(content), encoding="utf-8")
        environment = {"CHAOS": str(plan), "PYTHONPATH": str(self.folder / "hook")}
        with (
            (self.folder / "printed").open("wb") as printed,
            subprocess.Popen(
                [sys.executable, "-m", "snakemake", *CALL],
                cwd=self.clone.folder,
                env={**os.environ, **environment, "ISKD_STATE_SECONDS": "1"},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as running,
        ):
            self.groups.append(running.pid)
            code = running.wait()
        if kill is not None and note.exists():
            name = note.read_text(encoding="utf-8")
            self.kills[name, kill.scope] += 1
            self.last_hit |= name in LAST
            return name
        output = (self.folder / "printed").read_text(encoding="utf-8", errors="replace")
        assert code == 0, output[-6000:]
        return None

    def count(self) -> None:
        """Count what has gone on from where a kill had left it."""
        for file in (self.clone.folder / RESULTS).rglob("run.json"):
            run = json.loads(file.read_text(encoding="utf-8"))
            self.resumed["trainings"] += bool(run["resumed_after_steps"])
            self.resumed["resumes of trainings"] += len(run["resumed_after_steps"])
            self.resumed["evaluations"] += bool(run["resumed_after_texts"])

    def start_anew(self) -> None:
        """Remove the results, and what runs of jobs whose Snakemake was killed."""
        self.end()
        shutil.rmtree(self.clone.folder / "results")
        self.last_hit = False

    def end(self) -> None:
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def summary(self) -> str:
        lines = [f"{count:3d} kills of {scope}: {name}" for (name, scope), count in self.sorted()]
        states = (self.folder / "states").stat().st_size
        resumed = ", ".join(f"{count} {what}" for what, count in self.resumed.items())
        return "\n".join(["", *lines, f"resumed: {resumed}; {states} states were written"])

    def sorted(self) -> list[tuple[tuple[str, str], int]]:
        return sorted(self.kills.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = make_clone(tmp_path_factory.mktemp("undisturbed") / "clone")
    done = clone.snakemake(*CALL)
    assert done.returncode == 0, done.stderr[-4000:]
    return clone


def test_a_study_that_is_killed_wherever_it_hurts_ends_with_the_same_bytes(
    undisturbed: Clone, tmp_path: Path
) -> None:
    chaos = Chaos(make_clone(tmp_path / "clone"), tmp_path / "chaos")
    kills = schedule(seed=17)
    try:
        kill, from_the_start = next(kills), True
        while sum(chaos.kills.values()) < KILLS:
            hit = chaos.call(kill)
            # A moment that a whole study does not have would be waited for in vain.
            if hit == kill.aim or from_the_start:
                kill = next(kills)
            from_the_start = hit is None
            if hit is None:
                # The study was over before the moment came: once more, from its beginning.
                chaos.count()
                check_same_results(chaos.clone, undisturbed, "chaos")
                chaos.start_anew()
        assert chaos.call(None) is None
        chaos.count()
    finally:
        chaos.end()
    print(chaos.summary())
    check_same_results(chaos.clone, undisturbed, "chaos")
    assert sum(chaos.kills.values()) == KILLS
    if 2 * len(AIMS) <= KILLS:
        assert {name for name, _ in chaos.kills} >= set(AIMS)
    if KILLS >= 8:
        assert chaos.resumed["trainings"] > 0
