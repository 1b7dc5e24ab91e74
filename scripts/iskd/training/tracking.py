"""Show a training in the trackers that people use, through the callbacks of transformers.

A tracker only looks: it changes no bit of a training, and what goes wrong with it is said and ends
no training. It sees the rows of our own curve: the Trainer's loss is wrong after a resumption.
"""

import json
import logging
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from iskd.runtime.distributed import world
from iskd.runtime.tracking import Tracking, announced
from iskd.training.curve import Phase, Reporter

log = logging.getLogger("iskd.training")

_OPEN = "open"
# How many warm starts of each run this process has begun: one job may have several blocks.
_BEGUN: Counter[str] = Counter()


@contextmanager
def untouched_draws() -> Iterator[None]:
    """Put the random states of Python, numpy and torch back afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


class Follower(TrainerCallback):  # type: ignore[misc] # the library is not typed
    """A tracker's callback that can neither change a training's bits nor end it.

    After its first fault the tracker is left alone, and the log says so. What is saved it does not
    hear of: states are no models.

    Args:
        tracker: its name.
        make: makes the callback of transformers.
        reporter: whose rows are shown.
    """

    def __init__(self, tracker: str, make: Callable[[], Any], reporter: Reporter) -> None:
        self.tracker = tracker
        self.reporter = reporter
        self.inner: Any = None
        self._guarded("start", lambda: setattr(self, "inner", make()))

    def _guarded(self, what: str, call: Callable[[], object]) -> None:
        try:
            with untouched_draws():
                call()
        except Exception as error:
            self.inner = None
            message = " ".join(f"{type(error).__name__}: {error}".split())
            line = f"{self.tracker} failed at its {what}: {message:.300}"
            line += "; the training goes on without it"
            log.warning("%s", line)
            print(line, file=sys.stderr)

    def _tell(self, event: str, *args: Any, **kwargs: Any) -> None:
        if self.inner is not None:
            self._guarded(event, lambda: getattr(self.inner, event)(*args, **kwargs))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the tracker open its run."""
        if self.tracker == "wandb" and self.inner is not None:
            self._guarded("start", lambda: _open_wandb(args.run_name))
        self._tell("on_train_begin", args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest row of the curve."""
        if not logs or "loss" not in logs or not self.reporter.history:
            return
        row = {k: v for k, v in self.reporter.history[-1].items() if k not in ("phase", "step")}
        self._tell("on_log", args, state, control, logs=logs | row, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the tracker close its run."""
        self._tell("on_train_end", args, state, control, **kwargs)

    def close(self, trainer: Trainer, *, failed: bool) -> None:
        """Close what a training that failed leaves open; twice does no harm."""
        if failed:
            self._tell("on_train_end", trainer.args, trainer.state, trainer.control)
        wandb = sys.modules.get("wandb") if self.tracker == "wandb" else None
        if wandb is not None and getattr(wandb, "run", None) is not None:
            # Its callback leaves the run open, and the next training would go on in it.
            self._guarded("finish", lambda: wandb.finish(exit_code=int(failed)))


def _open_wandb(name: str) -> None:
    """Open a run in wandb, which reads its variables once in a process, not for each training."""
    names = ("WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME")
    project, folder, number, resume = (os.environ[variable] for variable in names)
    sys.modules["wandb"].init(project=project, dir=folder, id=number, resume=resume, name=name)


@contextmanager
def followed(trainer: Trainer, reporter: Reporter) -> Iterator[None]:
    """Have a training followed by the trackers that the job's rule names, if any.

    The first of several processes has them. A training that is taken up again goes on in the runs
    that it had: their names are kept until it has ended.

    Args:
        trainer: what trains within the block.
        reporter: its curve.
    """
    tracking = announced()
    if tracking is None or not world().first:
        yield
        return
    name = _run_name(tracking.run, reporter.phase)
    runs = _Runs(tracking, name)
    trainer.args.run_name, trainer.args.project = name, tracking.study
    with _environment(runs.variables()):
        classes = get_reporting_integration_callbacks(list(tracking.trackers))
        followers = [
            Follower(tracker, made, reporter)
            for tracker, made in zip(tracking.trackers, classes, strict=True)
        ]
        for follower in followers:
            trainer.add_callback(follower)
        if "mlflow" in tracking.trackers:
            trainer.add_callback(_KeepsMlflowRun(runs))
        failed = True
        try:
            yield
            failed = False
        finally:
            for follower in followers:
                follower.close(trainer, failed=failed)
        if trainer.state.global_step >= trainer.state.max_steps:
            runs.forget()


def _run_name(run: str, phase: Phase) -> str:
    """Name one of a job's trainings; in every attempt of the job they come in the same order."""
    if phase == "joint":
        return run
    _BEGUN[run] += 1
    number = _BEGUN[run]
    return f"{run}/{phase}" if number == 1 else f"{run}/{phase}_{number}"


class _Runs:
    """The runs of one training in its trackers, kept in a file while the training has not ended."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self.tracking, self.name = tracking, name
        self.folder = Path(tracking.folder)
        self.file = self.folder / _OPEN / f"{name}.json"
        self.known: dict[str, str] = {}
        with suppress(OSError, ValueError):
            known = json.loads(self.file.read_text(encoding="utf-8"))
            if known.get("request") == tracking.request:
                self.known = known
        if not self.known:
            self.known = {
                "request": tracking.request,
                "started": time.strftime("%Y%m%d-%H%M%S"),
                "wandb": secrets.token_hex(8),
            }
            self.keep()

    def keep(self, **more: str) -> None:
        """Write down what is known, and more; where that cannot be, the next run is a new one."""
        self.known |= more
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.known), encoding="utf-8")

    def forget(self) -> None:
        """Have the next training of this name, of an artifact made anew, be a run of its own."""
        with suppress(OSError):
            self.file.unlink()

    def variables(self) -> Mapping[str, str | None]:
        """Give the variables by which trackers are told where to write, offline all of them.

        What the caller has set holds, but for what names this run, and what would have models
        stored or their gradients watched.
        """
        study, below = self.tracking.study, self.name.removeprefix(f"{self.tracking.study}/")
        given = {
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(self.folder),
            "WANDB_PROJECT": study,
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
            # Files, as several jobs on several nodes write at once; MLflow would have a database.
            "MLFLOW_TRACKING_URI": (self.folder / "mlflow").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",
            "MLFLOW_EXPERIMENT_NAME": study,
            "TRACKIO_DIR": str(self.folder / "trackio"),
        }
        own = {
            "TENSORBOARD_LOGGING_DIR": str(
                self.folder / "tensorboard" / below / self.known["started"]
            ),
            "WANDB_RUN_ID": self.known["wandb"],
            "WANDB_RESUME": "allow",
            "WANDB_LOG_MODEL": "false",
            "WANDB_WATCH": "false",
            "MLFLOW_RUN_ID": self.known.get("mlflow"),
        }
        return {name: os.environ.get(name, value) for name, value in given.items()} | own


class _KeepsMlflowRun(TrainerCallback):  # type: ignore[misc] # the library is not typed
    """Write down the run that MLflow has opened: it gives the names itself."""

    def __init__(self, runs: _Runs) -> None:
        self.runs = runs

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        with suppress(Exception):
            self.runs.keep(mlflow=sys.modules["mlflow"].active_run().info.run_id)


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or unset them, and put them back."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
