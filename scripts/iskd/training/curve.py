"""A training's curve: what it reports, how far it is, and how the curves of phases are joined."""

import json
import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from iskd.errors import UserError
from iskd.progress import Bar, bar
from iskd.runtime.distributed import world

log = logging.getLogger("iskd.training")

# How many times a run reports to its log and its history: enough for a curve, few enough to read.
REPORTS = 50

Phase = Literal["joint", "warm_start"]
"""What is trained: the whole model, or a compact block by itself."""

_NAMES: dict[Phase, str] = {"joint": "training", "warm_start": "warm start"}
LOWER_RATE = "the training has diverged, lower its learning_rate"

# Called before each optimiser update with its number (from 0) and how many there are. What it gives
# says which variant of the model the update runs: FLOPs are counted once for each.
OnUpdate = Callable[[int, int], Hashable]


class Reporter(TrainerCallback):  # type: ignore[misc] # the library is not typed
    """Write the training curve, and say in the log how far the run is and what is left."""

    def __init__(
        self,
        sequences: torch.Tensor,
        batch: int,
        *,
        count: Callable[[], int],
        on_update: OnUpdate | None,
        phase: Phase = "joint",
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self.sequences, self.length = sequences.shape
        self.batch = batch
        self.count = count
        self.on_update = on_update
        self.phase = phase
        self.flops = 0
        # Since the last report. The Trainer's own sum is lost when a run is resumed.
        self.losses: list[torch.Tensor] = []
        # The same of the next-token loss, where the objective is another one.
        self.next_token: list[torch.Tensor] = []
        self.resumed = 0
        self.per_sequence: dict[Hashable, int] = {}
        self.started = time.monotonic()
        self.bar: Bar | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the model ready for the update, and add up what it costs."""
        del args, control, kwargs
        update = state.global_step
        variant = self.on_update(update, state.max_steps) if self.on_update else None
        if variant not in self.per_sequence:
            self.per_sequence[variant] = self.count()
        self.flops += self.per_sequence[variant] * self.batch_of(update)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the last update reported whatever its number: its totals are the run's."""
        del args, kwargs
        if self.bar is None and world().first:
            self.bar = bar(state.max_steps, _NAMES[self.phase], done=state.global_step - 1)
        if self.bar is not None:
            self.bar.update()
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over one report of the Trainer."""
        del args, control, kwargs
        if not logs or "loss" not in logs:
            return
        done = state.global_step
        loss = sum(loss.item() for loss in self.losses) / len(self.losses)
        self.losses.clear()
        told = {}
        if self.next_token:
            told["next_token"] = sum(one.item() for one in self.next_token) / len(self.next_token)
            self.next_token.clear()
        check_finite(loss, done, state.max_steps)
        here = time.monotonic() - self.started
        left = here / max(1, done - self.resumed) * (state.max_steps - done)
        self.history.append(
            {
                "phase": self.phase,
                "step": done,
                "tokens": self.seen(done) * self.length,
                "loss": loss,
                **told,
                "learning_rate": float(logs["learning_rate"]),
                "flops": self.flops,
            }
        )
        log.info(
            "%sstep %d of %d, loss %.4f, about %.0f s left",
            "" if self.phase == "joint" else f"{_NAMES[self.phase]}, ",
            done,
            state.max_steps,
            loss,
            left,
        )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        del args, kwargs
        if self.bar is not None:
            self.bar.close()

    def curve(self) -> dict[str, Any]:
        """Give what a resumed run needs to end with the same curve."""
        losses, told = ([one.item() for one in ones] for ones in (self.losses, self.next_token))
        waiting = {"losses": losses, "next_token": told}
        return {"history": self.history, "flops": self.flops, **waiting}

    def carry_on(self, curve: dict[str, Any], update: int) -> None:
        """Take over the curve of the run that is resumed after an update."""
        self.history[:] = curve["history"]
        self.flops = curve["flops"]
        self.losses[:] = [torch.tensor(loss) for loss in curve["losses"]]
        self.next_token[:] = [torch.tensor(loss) for loss in curve["next_token"]]
        self.resumed = update

    def seen(self, updates: int) -> int:
        """Count the sequences of so many updates; an epoch's last batch may be a short one."""
        epochs, batches = divmod(updates, -(-self.sequences // self.batch))
        return epochs * self.sequences + batches * self.batch

    def batch_of(self, update: int) -> int:
        """Count the sequences of one update's batch, all processes together."""
        return self.seen(update + 1) - self.seen(update)


def check_finite(loss: float, update: int, updates: int) -> None:
    """Check that a run has not diverged.

    Raises:
        UserError: its loss is infinite or no number.
    """
    if not math.isfinite(loss):
        raise UserError(f"step {update} of {updates}: the loss is {loss}, no number; {LOWER_RATE}")


def joined(*histories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chain the training curves of a run's phases: steps, tokens and FLOPs go on counting.

    The last row of each holds its totals; an empty one stands for a phase that was left out.
    """
    totals = {"step": 0, "tokens": 0, "flops": 0}
    rows: list[dict[str, Any]] = []
    for history in histories:
        rows += [{**row, **{key: row[key] + totals[key] for key in totals}} for row in history]
        totals = {key: rows[-1][key] for key in totals} if rows else totals
    return rows


def write_history(history: list[dict[str, Any]], path: Path) -> None:
    """Write a training curve as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in history:
            stream.write(json.dumps(row, sort_keys=True) + "\n")
