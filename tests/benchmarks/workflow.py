"""What the workflow itself takes: planning, an idle call, a job's imports, a study on one core.

    python -m tests.benchmarks.workflow [--rounds 5] [--largest 10000]

All in clones of its own. A study's own share is the part of its wall time on one core in which no
job does its work; a job works from where its script begins until its artifact is published.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from tests.benchmarks.timing import spread
from tests.workflow.conftest import Clone, make_clone

EMBEDDED = "config/config.yaml"
TINY = "tests/config/tiny.yaml"
JOBS = {"seeds": 21, "arms": 6}
"""Jobs that a further seed, or a further arm, adds to the smallest study."""

_AS_A_JOB = "from iskd.runtime.job import set_environment; set_environment(1, network=False)"
_IMPORTS = {
    "a training's": ("iskd.training.steps, iskd.models.folder", "transformers.trainer"),
    "an evaluation's": (
        "iskd.evaluation.lm, iskd.evaluation.lm_task",
        "lm_eval.models.huggingface, lm_eval.evaluator",
    ),
    "a figure's": ("iskd.paper.figures.tradeoff", "seaborn"),
}
"""What a job imports of ours, and the part of it that is other people's."""


def main() -> None:
    """Print a table for each of the four."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--first-seed", action="store_true", help="a third of the embedded study")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        imports(args.rounds)
        planning(Path(folder), args.rounds, args.largest)
        clone = make_clone(Path(folder, "study"))
        if args.first_seed:
            clone.edit(EMBEDDED, "seeds: [17, 18, 19]", "seeds: [17]")
        own_share(clone)
        idle(clone, args.rounds)


def imports(rounds: int) -> None:
    """Time a process that imports what a job does, and ends so, against its libraries alone."""
    print("| A process whose imports are | seconds | against its libraries' |\n|---|---|---|")
    for name, each in _IMPORTS.items():
        codes = [f"{_AS_A_JOB}; import {modules}, gc; gc.freeze()" for modules in each]
        times = [
            [_seconds([sys.executable, "-c", code], Path.cwd()) for code in codes]
            for _ in range(rounds)
        ]
        ratios = spread(ours / theirs for ours, theirs in times)
        print(f"| {name} | {spread(ours for ours, _ in times)} | {ratios} |", flush=True)
    print()


def planning(folder: Path, rounds: int, largest: int) -> None:
    """Time `snakemake -n` for more and more jobs; the smallest sizes as often as ``rounds``."""
    print("| More | Jobs planned | seconds | milliseconds a job | peak memory, MB |")
    print("|---|---|---|---|---|")
    for what, size in product(JOBS, (100, 1_000, 10_000)):
        if size > largest:
            continue
        clone = make_clone(folder / f"planned_{what}_{size}")
        number = max(1, size // JOBS[what])
        if what == "seeds":
            clone.edit(TINY, "seeds: [3]", f"seeds: [{', '.join(map(str, range(number)))}]")
        else:
            arm = "  l1: {method: l1}\n"
            others = [arm.replace("l1:", f"l1_{n}:") for n in range(number)]
            clone.edit(TINY, arm, "".join(others))
        seconds, memory, jobs = [], 0, 0
        for _ in range(rounds if size < 10_000 else 1):
            started = time.perf_counter()
            jobs, memory = _planned(clone)
            seconds.append(time.perf_counter() - started)
        each = 1000 * statistics.median(seconds) / jobs
        print(f"| {what} | {jobs:,} | {spread(seconds, 1)} | {each:.1f} | {memory:,} |", flush=True)
    print()


def _planned(clone: Clone) -> tuple[int, int]:
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
        "print(done.stdout + done.stderr); "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    call = ["-m", "snakemake", "-n", "--configfile", TINY, "-q", "rules"]
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, *call],
        cwd=clone.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    total = re.search(r"^total +(\d+)$", done.stdout, re.MULTILINE)
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert total is not None, done.stdout[-2000:]
    assert peak is not None
    return int(total[1]), int(peak[1])


def own_share(clone: Clone) -> None:
    """Run the embedded study on one core, once, and say what of it is no job's work."""
    started = time.perf_counter()
    done = clone.snakemake("--configfile", EMBEDDED, "-c", "1")
    wall = time.perf_counter() - started
    assert done.returncode == 0, done.stderr[-4000:]
    runs = list((clone.folder / "results/embedded").rglob("run.json"))
    work = sum(json.loads(run.read_text(encoding="utf-8"))["seconds"] for run in runs)
    print("| Embedded study, one core | |\n|---|---|")
    print(f"| wall time | {wall:.0f} s |")
    print(f"| its {len(runs)} jobs' own work | {work:.0f} s |")
    print(f"| the workflow's share | {1 - work / wall:.1%} |\n", flush=True)


def idle(clone: Clone, rounds: int) -> None:
    """Time a call that finds nothing to do, against Snakemake with an empty workflow."""
    empty = clone.folder / "empty.smk"
    empty.write_text("rule all:\n", encoding="utf-8")
    ours = ["--configfile", EMBEDDED, "-c", "1"]
    calls = {"an idle call": ours, "an empty workflow": ["-c", "1", "-s", "empty.smk"]}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, options in calls.items():
            command = [sys.executable, "-m", "snakemake", *options]
            times[name].append(_seconds(command, clone.folder))
    times["the first less the second"] = [a - b for a, b in zip(*times.values(), strict=True)]
    print("| Snakemake with | seconds |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {spread(seconds)} |", flush=True)
    print()


def _seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
