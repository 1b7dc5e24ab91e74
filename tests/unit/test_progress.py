"""How far a study is, from Snakemake's events; and what is said at its end."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest

from iskd import progress
from iskd.progress import Failed, StudyProgress, bar, closing_words, in_words


class Clock:
    """A clock that a test puts forward."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def tell(handler: StudyProgress, event: str, **told: Any) -> None:
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None)
    record.__dict__.update(event=event, **told)
    handler.handle(record)


def begin(handler: StudyProgress, number: int, rule: str, *wildcards: str, log: str = "") -> None:
    named = dict(enumerate(wildcards))
    logs = [log] if log else []
    tell(handler, "job_info", jobid=number, rule_name=rule, wildcards=named, log=logs)


def test_a_study_of_one_job_after_the_other(clock: Clock) -> None:
    said = io.StringIO()
    handler = StudyProgress("mine", said)
    tell(handler, "run_info", stats={"evaluate": 3, "pretrain_teacher": 1, "total": 4})
    begin(handler, 1, "pretrain_teacher", "toy")
    assert handler.seconds_left() is None
    clock.now += 60
    tell(handler, "job_finished", job_id=1)
    tell(handler, "progress", done=1, total=4)
    begin(handler, 2, "evaluate", "toy", "cbt")
    # No evaluation has ended yet: each is taken to last as long as the one job that has.
    assert said.getvalue() == (
        "study mine: 1 of 4 jobs done, about 3 min left; running: evaluate toy/cbt\n"
    )
    clock.now += 20
    tell(handler, "job_finished", job_id=2)
    tell(handler, "progress", done=2, total=4)
    begin(handler, 3, "evaluate", "toy", "other")
    clock.now += 5
    assert handler.seconds_left() == pytest.approx(35)


def test_jobs_at_a_time_share_what_is_left(clock: Clock) -> None:
    handler = StudyProgress("mine", io.StringIO())
    tell(handler, "run_info", stats={"evaluate": 6, "total": 6})
    for pair in (1, 3):
        begin(handler, pair, "evaluate")
        begin(handler, pair + 1, "evaluate")
        clock.now += 30
        tell(handler, "job_finished", job_id=pair)
        tell(handler, "job_finished", job_id=pair + 1)
    assert handler.seconds_left() == pytest.approx(30)


def test_a_line_now_and_then(clock: Clock) -> None:
    said = io.StringIO()
    handler = StudyProgress("mine", said)
    tell(handler, "run_info", stats={"evaluate": 50, "total": 50})
    for number in range(50):
        begin(handler, number, "evaluate", str(number))
        clock.now += 1
        tell(handler, "job_finished", job_id=number)
        tell(handler, "progress", done=number + 1, total=50)
    assert len(said.getvalue().splitlines()) == 4


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
        tell(handler, "job_error", jobid=7)
    (failed,) = handler.failed
    lines = failed.as_text().splitlines()
    assert lines[0] == f"evaluate toy failed; the end of {log}:"
    assert lines[1:] == [f"  line {n}" for n in range(20, 30)]
    assert "there is no log" in Failed("evaluate", [tmp_path / "none"]).as_text()


def test_a_job_that_succeeds_at_last_has_not_failed(tmp_path: Path) -> None:
    handler = StudyProgress("mine", io.StringIO())
    begin(handler, 7, "evaluate", "toy", log=str(tmp_path / "log"))
    tell(handler, "job_error", jobid=7)
    begin(handler, 7, "evaluate", "toy", log=str(tmp_path / "log"))
    tell(handler, "job_finished", job_id=7)
    assert handler.failed == []


def test_events_nobody_follows_do_no_harm() -> None:
    handler = StudyProgress("mine", io.StringIO())
    handler.handle(logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None))
    tell(handler, "shellcmd", shellcmd="rm")
    tell(handler, "job_finished", job_id=3)
    assert handler.line() == "study mine: 0 of 0 jobs done"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (36_000, "10.0 h")]
)
def test_durations(seconds: float, words: str) -> None:
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
    said = closing_words(tmp_path)
    assert "2 figures, 1 tables, 2 models" in said
    for path in ("paper/figure_tradeoff_toy.png", "paper/table_main.md", f"{step}/"):
        assert path in said
