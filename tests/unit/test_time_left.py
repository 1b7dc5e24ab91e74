"""How long the rest of a study takes: estimates at every moment of recorded runs."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import pytest

from iskd import time_left
from iskd.time_left import Running, TimeLeft, earlier_seconds, kind_of, typical_seconds
from tests.unit.conftest import Clock

RECORDED = Path(__file__).parent / "recorded_runs"
"""Runs on two cores as Snakemake's logs tell them: rule, begin and end of each job, in seconds."""
Run = list[tuple[str, float, float]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_left, "time", clock)
    return clock


def recorded(name: str) -> Run:
    text = (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8")
    return [(rule, begin, end) for rule, begin, end in map(json.loads, text.splitlines())]


def replayed(run: Run, clock: Clock, benchmarks: Path | None = None) -> dict[float, float]:
    """Tell an estimator of a run, and give what it says every five seconds, by time."""
    left = TimeLeft(benchmarks)
    left.left = Counter({**Counter(rule for rule, _, _ in run), "all": 1})
    zero, estimates = clock.now, {}
    end = max(end for _, _, end in run)
    moments = [(begin, 1, number) for number, (_, begin, _) in enumerate(run)]
    moments += [(until, 0, number) for number, (_, _, until) in enumerate(run)]
    moments += [(float(moment), 2, -1) for moment in range(60, int(end), 5)]
    running: dict[int, float] = {}
    for moment, what, number in sorted(moments):
        clock.now = zero + moment
        if what == 1:
            left.begun()
            running[number] = moment
        elif what == 0:
            rule, begin, _ = run[number]
            running.pop(number, None)
            left.ended(rule, moment - begin)
        else:
            now = [Running(run[other][0], moment - begin) for other, begin in running.items()]
            estimate = left.seconds(now)
            assert estimate is not None
            estimates[moment] = estimate
    return estimates


def wrong(run: Run, estimates: dict[float, float]) -> dict[float, tuple[float, float]]:
    """Give the estimates from the second minute on that are not true within a factor of two.

    Ten seconds more or less do not count, nor what is said of the last half minute.
    """
    end = max(end for _, _, end in run)
    judged = {at: left for at, left in estimates.items() if end - at >= 30}
    assert judged, "the run is too short"
    return {
        at: (left, end - at)
        for at, left in judged.items()
        if not 0.5 <= (left + 10) / (end - at + 10) <= 2
    }


@pytest.mark.parametrize("name", ["tiny", "tiny_slow", "gguf", "gguf_whole", "cached"])
def test_from_the_second_minute_on_it_is_true_within_a_factor_of_two(
    name: str, clock: Clock
) -> None:
    run = recorded(name)
    assert wrong(run, replayed(run, clock)) == {}


@pytest.mark.parametrize(
    ("earlier", "name"),
    # The second is a call that went on where another one had stopped, the third a faster machine.
    [("tiny_earlier", "tiny"), ("smollm2_first", "smollm2_second"), ("gguf", "gguf_whole")],
)
def test_with_earlier_calls_it_is_true_within_a_factor_of_two(
    earlier: str, name: str, tmp_path: Path, clock: Clock
) -> None:
    took: dict[str, list[float]] = defaultdict(list)
    for rule, begin, end in recorded(earlier):
        took[rule].append(end - begin)
    for rule, seconds in took.items():
        lines = [json.dumps({"s": each}) for each in seconds]
        (tmp_path / f"{rule}.jsonl").write_text("\n".join(lines))
    run = recorded(name)
    assert wrong(run, replayed(run, clock, tmp_path)) == {}


def test_short_preparations_do_not_make_trainings_short_or_long(clock: Clock) -> None:
    for seconds, most in ((0.1, 1.0), (300.0, 3.0)):
        left = TimeLeft()
        left.left = Counter({"prepare_task": 1, "substitute_block": 10})
        left.begun()
        clock.now += seconds
        left.ended("prepare_task", seconds)
        said = left.seconds([])
        assert said is not None
        assert 10 * 14 / 3 <= said <= 10 * 14 * most


def test_a_job_that_knows_what_it_needs_is_believed(clock: Clock) -> None:
    left = TimeLeft()
    left.left = Counter({"substitute_block": 3})
    left.begun()
    clock.now += 60
    # One runs and needs four minutes more, so the two others need five each.
    assert left.seconds([Running("substitute_block", 60, 240)]) == pytest.approx(240 + 2 * 300)


def test_a_job_that_outlasts_its_rule_says_how_long_others_take(clock: Clock) -> None:
    left = TimeLeft()
    left.left = Counter({"substitute_block": 3})
    left.begun()
    clock.now += 1000
    said = left.seconds([Running("substitute_block", 1000)])
    assert said is not None
    assert said > 2000


def test_nothing_is_said_before_a_job_begins() -> None:
    assert TimeLeft().seconds([]) is None


def test_earlier_calls_show_how_long_jobs_take(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "evaluate" / "toy"
    folder.mkdir(parents=True)
    (folder / "cbt.jsonl").write_text('{"s": 4.0}\n{"s": 8.0}\n')
    (folder / "half.jsonl").write_text('{"s": 4.')
    (tmp_path / "split_corpus.jsonl").write_text('{"s": 1.0}\n')
    assert earlier_seconds(tmp_path) == {"evaluate": 6.0, "split_corpus": 1.0}
    assert earlier_seconds(tmp_path / "none") == {}
    left = TimeLeft(tmp_path)
    left.left = Counter({"evaluate": 3, "all": 1})
    left.begun()
    clock.now += 1
    assert left.seconds([]) == pytest.approx(18)


def test_every_rule_has_a_kind_and_a_typical_duration() -> None:
    scripts = {file.stem for file in (Path(__file__).parents[2] / "scripts").glob("*.py")}
    kinds = {rule: kind_of(rule) for rule in scripts}
    assert {kinds["figure_loss"], kinds["table_main"], kinds["summarize"]} == {"report"}
    assert {kinds["substitute_block"], kinds["tune_teacher"]} == {"training"}
    assert all(typical_seconds(rule) > 0 for rule in scripts)
    assert mean(typical_seconds(rule) for rule in scripts if kinds[rule] == "report") < 5
