"""How far a study is, from Snakemake's events; and what is printed at its end."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest

from iskd import progress, study_progress, time_left
from iskd.errors import UserError
from iskd.progress import NOTES, bar, job_name, name_job, read_notes
from iskd.study_progress import (
    Failed,
    StudyProgress,
    closing_words,
    how_much,
    is_routine,
)
from iskd.time_left import in_words
from tests.unit.conftest import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (study_progress, time_left):
        monkeypatch.setattr(module, "time", clock)
    return clock


def send(handler: StudyProgress, event: str, **fields: Any) -> None:
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None)
    record.__dict__.update(event=event, **fields)
    handler.handle(record)


def begin(handler: StudyProgress, number: int, rule: str, *wildcards: str, log: str = "") -> None:
    named = dict(enumerate(wildcards))
    logs = [log] if log else []
    send(handler, "job_info", jobid=number, rule_name=rule, wildcards=named, log=logs)


def test_a_job_that_has_ended_is_one_line(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output)
    send(handler, "run_info", stats={"evaluate": 2, "pretrain_teacher": 1, "all": 1, "total": 4})
    begin(handler, 1, "pretrain_teacher", "toy")
    assert handler.seconds_left() == pytest.approx(20 + 2 * 11)  # what such jobs typically take
    clock.now += 60
    send(handler, "job_finished", job_id=1)
    begin(handler, 2, "evaluate", "toy", "cbt")
    clock.now += 5
    send(handler, "job_finished", job_id=2)
    assert output.getvalue().splitlines() == [
        "study mine: 4 jobs to run",
        "1/4   60 s  pretrain_teacher toy",
        # What evaluations typically take, times the factor by which the training took longer.
        "study mine: 1 of 4 jobs done, about 62 s left; running: evaluate toy/cbt",
        "2/4    5 s  evaluate toy/cbt",
    ]
    begin(handler, 3, "all")
    send(handler, "job_finished", job_id=3)
    assert "all" not in output.getvalue()


def test_how_far_the_study_is_is_told_now_and_then(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output, shown="study")
    send(handler, "run_info", stats={"evaluate": 4, "total": 4})
    for number in (1, 2):
        begin(handler, number, "evaluate", "toy", "cbt")
        clock.now += 20
        send(handler, "job_finished", job_id=number)
        send(handler, "progress", done=number, total=4)
    begin(handler, 3, "evaluate", "toy", "other")
    clock.now += 5
    assert handler.seconds_left() == pytest.approx(35)
    assert output.getvalue().splitlines() == [
        "study mine: 4 jobs to run",
        "study mine: 1 of 4 jobs done, about 60 s left; running: evaluate toy/cbt",
        "study mine: 2 of 4 jobs done, about 40 s left; running: evaluate toy/other",
    ]


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


def test_quick_jobs_do_not_get_a_line_about_the_study_each(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output)
    send(handler, "run_info", stats={"evaluate": 900, "total": 900})
    for number in range(900):
        begin(handler, number, "evaluate", str(number))
        clock.now += 1
        send(handler, "job_finished", job_id=number)
    lines = output.getvalue().splitlines()
    about_the_study = [line for line in lines if line.startswith("study")]
    assert len(lines) == 900 + len(about_the_study)
    # Every ten seconds at first, and ever less often: a run of a day is readable, too.
    assert 40 < len(about_the_study) < 70


def test_lines_fit_eighty_columns(clock: Clock) -> None:
    output = io.StringIO()
    handler = StudyProgress("a-study-with-a-long-name", output)
    model = "substitute_block/smollm2-135m/" + "an-arm-with-a-very-long-name/seed_17/step_30"
    send(handler, "run_info", stats={"evaluate": 1000, "total": 1000})
    for number in range(9):
        begin(handler, number, "evaluate", model, "hellaswag")
    clock.now += 4000
    for number in range(3):
        send(handler, "job_finished", job_id=number)
    begin(handler, 10, "evaluate", model, "hellaswag")
    lines = [*output.getvalue().splitlines(), handler.line()]
    assert max(len(line) for line in lines) <= 80
    assert any(line.endswith("/seed_17/step_30/hellaswag") for line in lines)
    assert handler.line().endswith(" left; 7 running")
    for width in (80, 40):
        block = handler.block(width)
        assert len(block) == 5
        assert block[-1] == "  and 4 more"
        assert max(len(line) for line in block) < width


def test_of_a_long_line_the_jobs_name_is_cut_and_not_the_time_left(clock: Clock) -> None:
    handler = StudyProgress("embedded", io.StringIO())
    send(handler, "run_info", stats={"evaluate": 114, "total": 114})
    for number in range(2):
        begin(handler, number, "evaluate", "toy/teacher_tuned/seed_18/step_02", "hellaswag")
    clock.now += 5
    send(handler, "job_finished", job_id=0)
    begin(handler, 2, "evaluate", "toy/teacher_tuned/seed_18/step_03", "hellaswag")
    assert handler.line() == "study embedded: 1 of 114 jobs done, about 5 min left; 2 running"
    send(handler, "job_finished", job_id=1)
    status, _, running = handler.line().partition("; running: ")
    assert status == "study embedded: 2 of 114 jobs done, about 5 min left"
    assert running.endswith("ellaswag")
    assert len(handler.line()) <= 80


def test_many_jobs_make_no_long_line(clock: Clock) -> None:
    handler = StudyProgress("mine", io.StringIO())
    for number in range(5):
        begin(handler, number, "evaluate", str(number))
    assert handler.line().endswith("running: evaluate 0 and 4 more")
    assert clock.now == 100


def test_a_failed_job_ends_in_ten_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "evaluate.log"
    log.write_text("".join(f"line {n}\n" for n in range(30)), encoding="utf-8")
    output = io.StringIO()
    handler = StudyProgress("mine", output)
    for _ in range(2):  # the second is another attempt
        begin(handler, 7, "evaluate", "toy", log=str(log))
        send(handler, "job_error", jobid=7)
    (failed,) = handler.failed
    lines = failed.as_text().splitlines()
    assert lines[0] == f"evaluate toy failed; the end of {log}:"
    assert lines[1:] == [f"  line {n}" for n in range(20, 30)]
    assert output.getvalue() == f"{failed.as_text()}\n" * 2
    assert "there is no log" in Failed("evaluate", [tmp_path / "none"]).as_text()
    assert "0 jobs done, 1 failed" in handler.line()
    assert handler.failed_words().splitlines()[1:] == [
        "1 job of 0 failed:",
        "  evaluate toy",
        f"    {log}",
    ]


def test_a_study_that_was_stopped_says_so_and_not_that_no_job_failed() -> None:
    handler = StudyProgress("mine", io.StringIO())
    send(handler, "run_info", stats={"evaluate": 9, "total": 9})
    begin(handler, 7, "evaluate", "toy")
    send(handler, "job_finished", job_id=7)
    assert handler.failed_words().splitlines()[1:] == [
        "stopped: 1 of 9 jobs done; call it again to go on"
    ]


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


def test_without_a_line_of_its_own_a_study_says_nothing_but_what_failed(tmp_path: Path) -> None:
    output = io.StringIO()
    handler = StudyProgress("mine", output, shown="nothing")
    send(handler, "run_info", stats={"evaluate": 1, "total": 1})
    begin(handler, 7, "evaluate", "toy", log=str(tmp_path / "log"))
    send(handler, "job_error", jobid=7)
    assert output.getvalue() == ""
    assert "there is no log" in handler.failed_words()


def test_how_much_is_shown_is_one_of_three_words() -> None:
    assert [how_much(word) for word in (None, "", "study")] == ["jobs", "jobs", "study"]
    with pytest.raises(UserError, match=r"ISKD_SHOW=all: unknown; give one of jobs, study, not"):
        how_much("all")


def record(message: str, level: int = logging.INFO, event: str | None = None) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, message, (), None)
    if event is not None:
        made.__dict__.update(event=event)
    return made


def test_what_a_study_says_itself_is_left_out_of_what_snakemake_says() -> None:
    for event in ("job_info", "job_error", "job_started", "job_finished", "progress", "run_info"):
        assert is_routine(record("", event=event))
    assert is_routine(record("Select jobs to execute..."))
    for kind in (None, "error"):
        of_script = record("RuleException:\nCalledProcessError in file", logging.ERROR, kind)
        assert is_routine(of_script)
    for kept in (
        "Nothing to be done (all requested files are present).",
        "Trying to restart job 3",
    ):
        assert not is_routine(record(kept))
    assert not is_routine(record("MissingOutputException in rule", logging.ERROR))
    # A warning that happens to begin like one of Snakemake's routine lines.
    assert not is_routine(record("Elapsed time is unknown", logging.WARNING))


def test_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with bar(3, "training") as shown:
        shown.update()
    assert capfd.readouterr() == ("", "")


def test_a_job_is_named_by_its_rule_and_what_distinguishes_it() -> None:
    wildcards = {"teacher": "toy", "arm": "iskd", "seed": "17", "step": "02"}
    assert job_name("substitute_block", wildcards) == "substitute_block toy/iskd/seed_17/step_02"
    assert job_name("collect_metrics", {}) == "collect_metrics"


def test_a_loop_notes_how_far_it_is_where_a_screen_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_job", "")
    monkeypatch.setenv(NOTES, str(tmp_path))
    name_job("evaluate toy/cbt")
    with bar(400, "scoring", done=100, unit="text") as shown:
        assert read_notes(tmp_path)["evaluate toy/cbt"].left is None
        clock.now += 10
        shown.update(100)
        note = read_notes(tmp_path)["evaluate toy/cbt"]
        assert (note.left, note.as_text()) == (20.0, "scoring 50 %, 20 s left")
        shown.update(100)  # at once: no file is written for each of a thousand rounds
        assert read_notes(tmp_path)["evaluate toy/cbt"].done == 200
    (tmp_path / "half.json").write_text('{"job": "evalu')
    assert read_notes(tmp_path) == {}
    monkeypatch.setenv(NOTES, str(tmp_path / "gone"))
    with bar(3, "scoring") as shown:
        shown.update()


def test_the_study_shows_what_its_jobs_note(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(progress, "time", clock)
    handler = StudyProgress("mine", io.StringIO())
    monkeypatch.setenv(NOTES, str(handler.take_notes()))
    send(handler, "run_info", stats={"evaluate": 2, "total": 2})
    begin(handler, 1, "evaluate", "toy", "cbt")
    monkeypatch.setattr(progress, "_job", "evaluate toy/cbt")
    with bar(100, "scoring") as shown:
        clock.now += 10
        shown.update(25)
        assert handler.block(80) == [
            "study mine: 0 of 2 jobs done, about 70 s left",
            "  evaluate toy/cbt  scoring 25 %, 30 s left",
        ]
    assert handler.block(80)[1] == "  evaluate toy/cbt  10 s"
    handler.end()


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
