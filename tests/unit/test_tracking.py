"""Trackers see a training's rows; they change none of its bits, and their faults end none."""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from iskd.errors import UserError
from iskd.runtime import tracking as handed
from iskd.runtime.tracking import Tracking, announce, announced, tracking_of
from iskd.runtime.workdir import WorkFolder
from iskd.training.loop import fine_tune
from iskd.training.tracking import untouched_draws
from tests.unit import test_workdir
from tests.unit.test_fine_tune import SETTINGS, fresh, random_sequences
from tests.unit.test_job import Named
from tests.unit.test_job import rule as make_rule

RUN = "tiny/toy/iskd/seed_3/step_01"
Event = tuple[str, dict[str, Any]]


class StandIn(TrainerCallback):
    """A callback that notes what it is told, and draws random numbers of each kind meanwhile."""

    events: list[Event]
    fails_at: str | None

    def note(self, event: str, **facts: Any) -> None:
        random.seed(random.random())
        np.random.seed(int(np.random.rand() * 1000))
        torch.manual_seed(int(torch.rand(()).item() * 1000))
        self.events.append((event, facts))
        if event == self.fails_at:
            raise ConnectionError("the server\nis down")

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        self.note("begin", run=args.run_name, project=args.project, variables=dict(os.environ))

    def on_log(self, args: Any, state: Any, *_: Any, logs: Any, **__: Any) -> None:
        self.note("log", step=state.global_step, **logs)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.note("end")

    def on_save(self, *_: Any, **__: Any) -> None:
        self.note("save")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the stand-in has been told; it stands in the place of a tracker's callback."""
    made = type("Made", (StandIn,), {"events": [], "fails_at": None})
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", made)
    return made.events  # type: ignore[attr-defined]


@pytest.fixture
def fail_at(events: list[Event]) -> Callable[[str], None]:
    made = integration_utils.INTEGRATION_TO_CALLBACK["trackio"]
    return lambda event: setattr(made, "fails_at", event)


@pytest.fixture(autouse=True)
def _untracked_afterwards() -> Iterator[None]:
    yield
    announce(None)


def follow(folder: Path, *trackers: str, request: str = "r") -> None:
    announce(Tracking(trackers or ("trackio",), "tiny", RUN, str(folder / "tracking"), request))


def train(**changes: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    model = fresh(dropout=0.2)
    settings = replace(SETTINGS, epochs=2)
    history = fine_tune(model, random_sequences(10), settings, seed=3, **changes)
    return model.state_dict(), history


def check_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_rows_of_the_curve_arrive(events: list[Event], tmp_path: Path) -> None:
    follow(tmp_path)
    _, history = train()
    assert [name for name, _ in events] == ["begin", *["log"] * len(history), "end"]
    opened = events[0][1]
    assert (opened["run"], opened["project"]) == (RUN, "tiny")
    shown = [facts for name, facts in events if name == "log"]
    for row, wanted in zip(shown, history, strict=True):
        assert {key: row[key] for key in wanted if key != "phase"} == {
            key: value for key, value in wanted.items() if key != "phase"
        }
    assert "grad_norm" in shown[0]


def test_everything_is_offline_and_below_the_study(
    events: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_WATCH", "all")
    before = dict(os.environ)
    follow(tmp_path)
    train()
    variables, folder = events[0][1]["variables"], str(tmp_path / "tracking")
    assert variables["WANDB_MODE"] == "offline"
    assert variables["WANDB_PROJECT"] == "mine"  # what somebody has set holds
    assert variables["WANDB_WATCH"] == variables["WANDB_LOG_MODEL"] == "false"  # but not this
    assert variables["MLFLOW_TRACKING_URI"] == f"file://{folder}/mlflow"
    for name in ("WANDB_DIR", "TRACKIO_DIR", "TENSORBOARD_LOGGING_DIR"):
        assert variables[name].startswith(folder)
    assert "/tensorboard/toy/iskd/seed_3/step_01/" in variables["TENSORBOARD_LOGGING_DIR"]
    announce(None)
    assert dict(os.environ) == before


def test_a_tracker_that_draws_changes_no_bit(events: list[Event], tmp_path: Path) -> None:
    wanted, curve = train()
    assert events == []
    follow(tmp_path)
    weights, history = train()
    check_same(weights, wanted)
    assert history == curve
    assert len(events) > 2


@pytest.mark.parametrize("event", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_left_alone_and_that_is_said_once(
    event: str,
    events: list[Event],
    *,
    fail_at: Callable[[str], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted, curve = train()
    fail_at(event)
    follow(tmp_path)
    weights, history = train()
    check_same(weights, wanted)
    assert history == curve
    assert [name for name, _ in events].count(event) == 1
    assert events[-1][0] == event
    (line,) = [r.getMessage() for r in caplog.records if "trackio failed" in r.getMessage()]
    assert "ConnectionError: the server is down; the training goes on without it" in line
    assert line in capsys.readouterr().err


def test_a_training_that_fails_closes_its_run(events: list[Event], tmp_path: Path) -> None:
    def harm(update: int, _: int) -> int:
        if update == 2:
            raise UserError("no more")
        return 0

    follow(tmp_path)
    with pytest.raises(UserError, match="no more"):
        train(on_update=harm)
    assert [name for name, _ in events][-1] == "end"


@pytest.fixture
def a_state_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISKD_STATE_SECONDS", "0")


@pytest.mark.usefixtures("a_state_after_each_step")
def test_a_resumed_training_goes_on_in_its_run_and_a_new_one_does_not(
    events: list[Event], tmp_path: Path
) -> None:
    def identity() -> tuple[str, ...]:
        variables = [facts for name, facts in events if name == "begin"][-1]["variables"]
        return tuple(variables[name] for name in ("WANDB_RUN_ID", "TENSORBOARD_LOGGING_DIR"))

    def kill(update: int, _: int) -> int:
        if update == 4:
            raise KeyboardInterrupt
        return 0

    follow(tmp_path)
    _, curve = train()
    wanted = [facts for name, facts in events if name == "log"]
    assert identity()[0] != ""
    events.clear()
    work = WorkFolder(tmp_path / "work", test_workdir.REQUEST)
    with pytest.raises(KeyboardInterrupt):
        train(work=work, on_update=kill)
    killed = identity()
    _, history = train(work=WorkFolder(tmp_path / "work", test_workdir.REQUEST))
    assert identity() == killed
    assert history == curve
    assert "save" not in [name for name, _ in events]
    shown = {facts["step"]: facts["loss"] for name, facts in events if name == "log"}
    assert shown == {facts["step"]: facts["loss"] for facts in wanted}
    train()  # an artifact made anew
    assert identity()[0] != killed[0]
    # So is one that another request asks for, though the first has not ended.
    with pytest.raises(KeyboardInterrupt):
        train(on_update=kill)
    killed = identity()
    follow(tmp_path, request="another")
    train()
    assert identity()[0] != killed[0]


def test_random_states_of_every_kind_are_put_back() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    def fail() -> None:
        with untouched_draws():
            drawn()
            raise ZeroDivisionError

    seed()
    with pytest.raises(ZeroDivisionError):
        fail()
    found = drawn()
    seed()
    assert found == drawn()


def test_tensorboard_itself(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    wanted, _ = train()
    follow(tmp_path, "tensorboard")
    weights, history = train()
    check_same(weights, wanted)
    (file,) = (tmp_path / "tracking/tensorboard").rglob("events.out.*")
    read = accumulator.EventAccumulator(str(file.parent))
    read.Reload()
    points = read.Scalars("train/loss")
    assert [point.step for point in points] == [row["step"] for row in history]
    assert [point.value for point in points] == pytest.approx([row["loss"] for row in history])


# --- from the rule to the training ----------------------------------------------------------------


def task(report_to: str | None, manifest: str = f"results/{RUN}/manifest.json") -> Any:
    snakemake = make_rule()
    snakemake.output = Named(manifest=manifest)
    snakemake.resources = {} if report_to is None else {"report_to": report_to}
    return snakemake


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(*modules: str) -> None:
        def find(name: str) -> Any:
            return SimpleNamespace(origin="here") if name in modules else None

        monkeypatch.setattr(handed, "find_spec", find)

    return have


@pytest.mark.parametrize("prefix", ["", "theirs/results/"])
def test_a_job_tells_its_trainings_what_follows_them(
    prefix: str, installed: Callable[..., None]
) -> None:
    installed("wandb", "tensorboardX")
    place = f"{prefix}results/tiny/substitute_block/toy/iskd/seed_3/step_01"
    told = tracking_of(
        task("tensorboard+wandb", f"{place}/manifest.json"), "substitute_block", {"seed": 3}
    )
    assert told is not None
    assert told.trackers == ("tensorboard", "wandb")
    assert told.run == RUN
    assert told.folder == str(Path(prefix, "results/tiny/tracking").absolute())
    announce(told)
    assert announced() == told
    announce(None)
    assert announced() is None


@pytest.mark.parametrize("report_to", [None, "none"])
def test_without_trackers_nothing_is_told(report_to: str | None) -> None:
    assert tracking_of(task(report_to), "substitute_block", {}) is None


def test_a_missing_package_is_named_with_the_command(installed: Callable[..., None]) -> None:
    installed("mlflow")
    with pytest.raises(UserError, match=r"not installed here: tensorboard, wandb; `pip install "):
        tracking_of(task("tensorboard+mlflow+wandb"), "substitute_block", {})


def test_a_folder_that_a_tracker_left_behind_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("trackio", None)
    assert handed.missing_packages(["trackio"]) == ["trackio"]
    (tmp_path / "trackio/__init__.py").touch()
    assert handed.missing_packages(["trackio"]) == []


def test_an_unknown_tracker_in_the_resource_is_refused() -> None:
    with pytest.raises(UserError, match="'clearml' is no tracker; use tensorboard, wandb"):
        tracking_of(task("clearml"), "substitute_block", {})


def test_what_is_told_is_json() -> None:
    announce(Tracking(("wandb",), "tiny", RUN, "/there", "r"))
    assert json.loads(os.environ[handed.VARIABLE])["trackers"] == ["wandb"]
