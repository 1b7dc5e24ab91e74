"""Save the state of a training now and then, and when it is asked to stop."""

import json
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from iskd.provenance.artifact import canonical_json
from iskd.provenance.machine import bits_depend_on
from iskd.runtime.distributed import first_says, largest, wait_for_all, world
from iskd.runtime.signals import StopRequest
from iskd.runtime.workdir import RunStates, WorkFolder, state_seconds
from iskd.training.curve import Phase

log = logging.getLogger("iskd.training")

_CURVE = "curve.json"


def states_of(work: WorkFolder, device: torch.device, phase: Phase, seed: int) -> RunStates:
    """Open the states of one of a job's trainings: its bits depend on devices and threads too."""
    together = {"processes": world().size, "parallel": world().parallel}
    return work.run(**bits_depend_on(device), **together, phase=phase, seed=seed)


def newest_state(states: RunStates) -> Path | None:
    """Find the state that all processes go on from; the first one judges them."""
    found = states.newest() if world().first else None
    update = first_says(-1 if found is None else update_of(found))
    return None if update < 0 else states.path / f"checkpoint-{update}"


def update_of(state: Path) -> int:
    """Say after which update a state was saved."""
    return int(state.name.removeprefix("checkpoint-"))


class StateKeeper(TrainerCallback):  # type: ignore[misc] # the library is not typed
    """Have the Trainer save its state, and vouch for what it saved.

    Saving changes no bit of the run: the Trainer keeps the order of its data and all random
    states. A request to stop is honoured at the end of the optimiser update, when they belong
    together (a state saved before it holds numbers that were drawn already).

    Several processes save and stop at the same update: when the clock of the first says so, and
    when any of them is asked to stop.

    Args:
        states: where they lie.
        stop: whether somebody wants this process to end.
        curve: gives what else has to survive, as JSON's types.
    """

    def __init__(
        self, states: RunStates, stop: StopRequest, curve: Callable[[], dict[str, Any]]
    ) -> None:
        self.states = states
        self.stop = stop
        self.curve = curve
        self.every = state_seconds()
        self.saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a state when it is time for one."""
        del args, kwargs
        if state.global_step == state.max_steps:
            return  # what follows is publishing
        name = self.stop.signal_name
        number = signal.Signals[name].value if name else 0
        late = world().first and time.monotonic() - self.saved >= self.every
        number, due = largest([number, int(late)])
        if number:
            self.stop.signal_name = signal.Signals(number).name
            log.info("%s: saving the state of step %d", self.stop.signal_name, state.global_step)
            control.should_training_stop = True
        if number or due:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the state that the Trainer has written."""
        del control, kwargs
        wait_for_all()  # each process has written its random state
        if world().first:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _CURVE).write_text(canonical_json(self.curve()), encoding="utf-8")
            # A pickle that nothing reads, and that holds this machine's paths.
            (folder / "training_args.bin").unlink(missing_ok=True)
            self.states.commit(state.global_step)
        wait_for_all()  # none leaves before the state counts
        self.saved = time.monotonic()


def read_curve(state: Path) -> dict[str, Any]:
    """Read what :class:`StateKeeper` had kept besides the Trainer's own state."""
    curve: dict[str, Any] = json.loads((state / _CURVE).read_text(encoding="utf-8"))
    return curve
