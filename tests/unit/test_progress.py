"""How far a study is, from Snakemake's events; and what is printed at its end."""

import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from iskd import study_progress
from iskd.progress import bar
from iskd.study_progress import (
    Failed,
    StudyProgress,
    closing_words,
    earlier_seconds,
    in_words,
)


class Clock:
    """A clock that a test puts forward."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(study_progress, "time", clock)
    return clock


def send(handler: StudyProgress, event: str, **fields: Any) -> None:
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None)
    record.__dict__.update(event=event, **fields)
    handler.handle(record)


def begin(handler: StudyProgress, number: int, rule: str, *wildcards: str, log: str = "") -> None:
    named = dict(enumerate(wildcards))
    logs = [log] if log else []
    send(handler, "job_info", jobid=number, rule_name=rule, wildcards=named, log=logs)


def test_the_time_left_is_shown_while_jobs_run_one_by_one(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output)
    send(handler, "run_info", stats={"evaluate": 3, "pretrain_teacher": 1, "total": 4})
    begin(handler, 1, "pretrain_teacher", "toy")
    assert handler.seconds_left() is None
    clock.now += 60
    send(handler, "job_finished", job_id=1)
    send(handler, "progress", done=1, total=4)
    begin(handler, 2, "evaluate", "toy", "cbt")
    # No evaluation has ended yet: each is taken to last as long as the one job that has.
    assert output.getvalue() == (
        "study mine: 1 of 4 jobs done, about 3 min left; running: evaluate toy/cbt\n"
    )
    clock.now += 20
    send(handler, "job_finished", job_id=2)
    send(handler, "progress", done=2, total=4)
    begin(handler, 3, "evaluate", "toy", "other")
    clock.now += 5
    assert handler.seconds_left() == pytest.approx(35)


def test_jobs_at_a_time_share_what_is_left(clock: Clock) -> None:
    handler = StudyProgress("mine", io.StringIO())
    send(handler, "run_info", stats={"evaluate": 6, "total": 6})
    for pair in (1, 3):
        begin(handler, pair, "evaluate")
        begin(handler, pair + 1, "evaluate")
        clock.now += 30
        send(handler, "job_finished", job_id=pair)
        send(handler, "job_finished", job_id=pair + 1)
    assert handler.seconds_left() == pytest.approx(30)


def test_quick_jobs_do_not_get_a_line_each(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output)
    send(handler, "run_info", stats={"evaluate": 50, "total": 50})
    for number in range(50):
        begin(handler, number, "evaluate", str(number))
        clock.now += 1
        send(handler, "job_finished", job_id=number)
        send(handler, "progress", done=number + 1, total=50)
    assert len(output.getvalue().splitlines()) == 4


def test_many_jobs_make_no_long_line(clock: Clock) -> None:
    handler = StudyProgress("mine", io.StringIO())
    for number in range(5):
        begin(handler, number, "evaluate", str(number))
    assert handler.line().endswith("running: evaluate 0, evaluate 1, evaluate 2 and 2 more")
    assert clock.now == 100


def test_a_failed_job_ends_in_ten_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "evaluate.log"
    log.write_text("".join(f"line {n}\n" for n in range(30)), encoding="utf-8")
    handler = StudyProgress("mine", io.StringIO())
    for _ in range(2):  # the second is another attempt
        begin(handler, 7, "evaluate", "toy", log=str(log))
        send(handler, "job_error", jobid=7)
    (failed,) = handler.failed
    lines = failed.as_text().splitlines()
    assert lines[0] == f"evaluate toy failed; the end of {log}:"
    assert lines[1:] == [f"  line {n}" for n in range(20, 30)]
    assert "there is no log" in Failed("evaluate", [tmp_path / "none"]).as_text()


def test_a_job_that_succeeds_at_last_has_not_failed(tmp_path: Path) -> None:
    handler = StudyProgress("mine", io.StringIO())
    begin(handler, 7, "evaluate", "toy", log=str(tmp_path / "log"))
    send(handler, "job_error", jobid=7)
    begin(handler, 7, "evaluate", "toy", log=str(tmp_path / "log"))
    send(handler, "job_finished", job_id=7)
    assert handler.failed == []


def test_events_nobody_follows_do_no_harm() -> None:
    handler = StudyProgress("mine", io.StringIO())
    handler.handle(logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None))
    send(handler, "shellcmd", shellcmd="rm")
    send(handler, "job_finished", job_id=3)
    assert handler.line() == "study mine: 0 of 0 jobs done"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (36_000, "10.0 h")]
)
def test_durations_are_shown_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with bar(3, "training") as shown:
        shown.update()
    assert capfd.readouterr() == ("", "")


def test_the_end_says_where_things_are(tmp_path: Path) -> None:
    assert closing_words(tmp_path) == ""
    step = tmp_path / "substitute_block/toy/iskd/seed_1/step_02"
    for file in (
        *(tmp_path / "paper" / n for n in ("manifest.json", "figure_loss_toy.png")),
        *(tmp_path / "paper" / n for n in ("figure_tradeoff_toy.png", "table_main.md")),
        tmp_path / "drop_layers/toy/drop/seed_1/step_02/README.md",
        step / "README.md",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    text = closing_words(tmp_path)
    assert "2 figures, 1 tables, 2 models" in text
    for path in ("paper/figure_tradeoff_toy.png", "paper/table_main.md", f"{step}/"):
        assert path in text


RECORDED = sorted((Path(__file__).parent / "recorded_runs").glob("*.jsonl"))
"""Runs on two cores as their reports tell them: rule, begin and end of each job, in seconds."""


def replayed(run: list[tuple[str, float, float]], clock: Clock) -> dict[float, float]:
    """Send a study's progress the events of a run, and give its estimates of the rest, by time."""
    handler = StudyProgress("mine", io.StringIO())
    stats = Counter(rule for rule, _, _ in run)
    send(handler, "run_info", stats={**stats, "all": 1, "total": len(run) + 1})
    events = [(begin_at, 1, number) for number, (_, begin_at, _) in enumerate(run)]
    events += [(end_at, 0, number) for number, (_, _, end_at) in enumerate(run)]
    zero, estimates = clock.now, {}
    waiting = set(range(len(run)))
    for moment, begins, number in sorted(events):
        clock.now = zero + moment
        if begins:
            begin(handler, number, run[number][0])
        elif number in waiting:
            send(handler, "job_finished", job_id=number)
        left = handler.seconds_left()
        if left is not None:
            estimates[moment] = left
    return estimates


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_from_the_second_minute_on_the_time_left_is_true_within_a_factor_of_two(
    file: Path, clock: Clock
) -> None:
    run = [tuple(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    end = max(end_at for _, _, end_at in run)
    estimates = replayed(run, clock)
    judged = {at: left for at, left in estimates.items() if at >= 60 and end - at >= 45}
    assert judged, "the run is too short"
    wrong = {
        at: (left, end - at)
        for at, left in judged.items()
        if not 0.5 <= (left + 10) / (end - at + 10) <= 2
    }
    assert wrong == {}


def test_a_long_training_does_not_count_for_all(clock: Clock) -> None:
    handler = StudyProgress("mine", io.StringIO())
    send(handler, "run_info", stats={"pretrain_teacher": 1, "prepare_task": 1, "evaluate": 10})
    for number, (rule, seconds) in enumerate([("pretrain_teacher", 130), ("prepare_task", 2)]):
        begin(handler, number, rule)
        clock.now += seconds
        send(handler, "job_finished", job_id=number)
    # The median of both rules, and no evaluation was seen.
    assert handler.seconds_left() == pytest.approx(10 * 66)
    begin(handler, 2, "evaluate")
    clock.now += 5
    send(handler, "job_finished", job_id=2)
    assert handler.seconds_left() == pytest.approx(9 * 5)


def test_earlier_calls_show_how_long_jobs_take(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "evaluate" / "toy"
    folder.mkdir(parents=True)
    (folder / "cbt.jsonl").write_text('{"s": 4.0}\n{"s": 8.0}\n')
    (folder / "half.jsonl").write_text('{"s": 4.')
    (tmp_path / "split_corpus.jsonl").write_text('{"s": 1.0}\n')
    assert earlier_seconds(tmp_path) == {"evaluate": 6.0, "split_corpus": 1.0}
    assert earlier_seconds(tmp_path / "none") == {}
    handler = StudyProgress("mine", io.StringIO(), tmp_path)
    send(handler, "run_info", stats={"evaluate": 3, "prepare_task": 1})
    begin(handler, 1, "prepare_task")
    clock.now += 2
    send(handler, "job_finished", job_id=1)
    assert handler.seconds_left() == pytest.approx(18)
