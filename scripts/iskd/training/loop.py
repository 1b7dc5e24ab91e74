"""One fine-tuning run, on transformers' Trainer."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from iskd.errors import UserError
from iskd.progress import bar
from iskd.training.flops import count_flops
from iskd.training.objectives import Objective, next_token_loss
from iskd.training.optimizer import make_optimizer, parameter_groups
from iskd.training.processes import World, check_alike, mean, share, world
from iskd.training.resuming import StateKeeper, newest_state, read_curve, states_of, step_of
from iskd.training.sharding import split_by_block, take_over, twin_of
from iskd.training.state import Interrupted, StopRequest, WorkFolder

log = logging.getLogger("iskd.training")

# How many times a run reports to its log and its history: enough for a curve, few enough to read.
REPORTS = 50

_LOWER = "the training has diverged, lower its learning_rate"

# Called before each optimiser step with its number (from 0) and the number of steps. What it gives
# says which variant of the model the step runs: FLOPs are counted once for each.
OnStep = Callable[[int, int], Hashable]


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """Token sequences of one length as a data set; draws nothing at random itself."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index].long()}


class _Shares(BatchSampler):
    """One process's share of every batch; the batches are those of a process that is alone.

    The library's way would fill an epoch's last batch up with sequences seen before, or leave
    processes without one. Here they share it as evenly as it goes; who would get none takes its
    first sequence, which then counts nothing.
    """

    def __init__(self, sampler: RandomSampler, batch_size: int, world: World) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.world = world

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[share(len(batch), self.world)] or batch[:1]


class _ObjectiveTrainer(Trainer):
    """The library's Trainer with one of our objectives as the loss.

    Of a batch that several processes share, each sees its part. Their gradients are averaged, so
    that each loss is weighted with the part's length: in sum the batch's mean, as if seen by one.
    """

    objective: Objective = staticmethod(next_token_loss)
    reporter: "_Reporter"
    micro_batch: int | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        args: TrainingArguments,
        blocks: torch.Tensor,
        reporter: "_Reporter",
    ) -> "_ObjectiveTrainer":
        """Make one that reports to our own log instead of printing."""
        made = cls(model=model, args=args, train_dataset=TokenBlocks(blocks), callbacks=[reporter])
        made.reporter = reporter
        made.remove_callback(_printer())
        return made

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Have the processes share the batches that one alone would see, in the same order."""
        together = world()
        if together.size == 1:
            return super().get_train_dataloader()
        dataset = self.train_dataset
        shares = _Shares(RandomSampler(dataset), self.reporter.batch, together)
        loader = DataLoader(
            dataset,
            batch_sampler=shares,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # As the library prepares it for one process: seeded order, device, epochs.
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Add up the gradients of a batch, as much of it at once as fits into memory.

        Every sequence has the same length, so that means weighted by sequences are exact.
        """
        del num_items_in_batch
        model.train()
        ids = self._prepare_inputs(inputs)["input_ids"]
        counted, weight = self._part()
        parts = ids.split(self.micro_batch or len(ids))
        total = torch.zeros((), device=ids.device)
        for number, part in enumerate(parts, 1):
            # Processes exchange their gradients once per batch.
            waits = number < len(parts) and world().size > 1
            with self.accelerator.no_sync(model) if waits else nullcontext():
                loss = self.objective(model, {"input_ids": part, **counted})
                loss = loss * (weight * len(part) / len(ids))
                self.accelerator.backward(loss)
            total += loss.detach()
        self.reporter.losses.append(mean(total))
        return total

    def _part(self) -> tuple[dict[str, torch.Tensor], float]:
        """Say what an objective must know of this process's part of a batch, and its weight."""
        together = world()
        if together.size == 1:
            return {}, 1.0
        whole = self.reporter.batch_of(self.state.global_step)
        part = len(range(whole)[share(whole, together)])
        return {"counted": torch.tensor(part)}, part * together.size / whole


class _Reporter(TrainerCallback):
    """Write the training curve, and say in the log how far the run is and what is left."""

    def __init__(
        self,
        blocks: torch.Tensor,
        batch: int,
        *,
        count: Callable[[], int],
        on_step: OnStep | None,
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self.sequences, self.length = blocks.shape
        self.batch = batch
        self.count = count
        self.on_step = on_step
        self.flops = 0
        # Since the last report. The Trainer's own sum is lost when a run is resumed.
        self.losses: list[torch.Tensor] = []
        self.resumed = 0
        self.per_sequence: dict[Hashable, int] = {}
        self.started = time.monotonic()
        self.bar: tqdm[NoReturn] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the model ready for the step, and add up what the step costs."""
        del args, control, kwargs
        step = state.global_step
        variant = self.on_step(step, state.max_steps) if self.on_step else None
        if variant not in self.per_sequence:
            self.per_sequence[variant] = self.count()
        self.flops += self.per_sequence[variant] * self.batch_of(step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the last step reported whatever its number: its totals are the run's."""
        del args, kwargs
        if self.bar is None and world().first:
            self.bar = bar(state.max_steps, "training", done=state.global_step - 1)
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
        check_finite(loss, done, state.max_steps)
        here = time.monotonic() - self.started
        left = here / max(1, done - self.resumed) * (state.max_steps - done)
        self.history.append(
            {
                "phase": "joint",
                "step": done,
                "tokens": self.seen(done) * self.length,
                "loss": loss,
                "learning_rate": float(logs["learning_rate"]),
                "flops": self.flops,
            }
        )
        log.info("step %d of %d, loss %.4f, about %.0f s left", done, state.max_steps, loss, left)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        del args, kwargs
        if self.bar is not None:
            self.bar.close()

    def curve(self) -> dict[str, Any]:
        """Give what a resumed run needs to end with the same curve."""
        losses = [loss.item() for loss in self.losses]
        return {"history": self.history, "flops": self.flops, "losses": losses}

    def carry_on(self, curve: dict[str, Any], step: int) -> None:
        """Take over the curve of the run that is resumed after a step."""
        self.history[:] = curve["history"]
        self.flops = curve["flops"]
        self.losses[:] = [torch.tensor(loss) for loss in curve["losses"]]
        self.resumed = step

    def seen(self, steps: int) -> int:
        """Count the sequences of so many steps; an epoch's last batch may be a short one."""
        epochs, batches = divmod(steps, -(-self.sequences // self.batch))
        return epochs * self.sequences + batches * self.batch

    def batch_of(self, step: int) -> int:
        """Count the sequences of one step's batch, all processes together."""
        return self.seen(step + 1) - self.seen(step)


def make_deterministic(seed: int) -> None:
    """Seed torch and ask for algorithms with a fixed order of summation."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # That would also fill all memory before it is written: it finds reads of what nobody wrote,
    # changes no result where there are none, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_finite(loss: float, step: int, steps: int) -> None:
    """Check that a run has not diverged.

    Raises:
        UserError: its loss is infinite or no number.
    """
    if not math.isfinite(loss):
        raise UserError(f"step {step} of {steps}: the loss is {loss}, no number; {_LOWER}")


def check_length(model: PreTrainedModel, blocks: torch.Tensor) -> None:
    """Check that a model takes sequences as long as these, int (sequences, length).

    Raises:
        UserError: it does not.
    """
    if blocks.shape[1] > model.config.max_position_embeddings:
        raise UserError(
            f"the model takes {model.config.max_position_embeddings} positions, the sequences have "
            f"{blocks.shape[1]}; lower corpus.block_length"
        )


def fine_tune(
    model: PreTrainedModel,
    blocks: torch.Tensor,
    settings: dict[str, Any],
    *,
    seed: int,
    new: Collection[nn.Module] = (),
    objective: Objective = next_token_loss,
    groups: list[dict[str, Any]] | None = None,
    on_step: OnStep | None = None,
    work: WorkFolder | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place.

    With a work folder, a run that was killed goes on from its newest state and ends with the same
    bits as one that was not. Several processes (``iskd.training.processes``) share each batch; all
    must call this alike.

    Args:
        model: the model; its parameters stay float32, bfloat16 precision is autocast.
        blocks: token sequences, int (sequences, length).
        settings: a ``Training`` section of the config, as a dict.
        seed: seed of the data's order and of dropout.
        new: modules that get the high learning rate; all the rest gets the low one.
        objective: the loss.
        groups: the optimiser's parameter groups, in place of those that ``new`` makes; the
            learning rate reported is the first one's.
        on_step: called before each optimiser step, the first one included. What it does must
            follow from its arguments alone.
        work: where the states of the run are kept, if it is to survive being killed.

    Returns:
        the training curve, its last row at the last step: optimiser step, tokens seen, loss (mean
        since the row before), low learning rate, and FLOPs so far (forward and backward, the
        teacher's included; counted on one sequence of a throw-away pass, which they are
        proportional to)

    Raises:
        UserError: the sequences are longer than the model takes, the training diverges, or it does
            not fit into the GPU's memory.
        ValueError: ``on_step`` is to change a model that several processes share in parts.
        Interrupted: the process was asked to stop; the state is saved.
    """
    check_length(model, blocks)
    seed %= 2**32  # numpy, which the Trainer seeds too, takes no more
    together = world()
    check_alike(model)
    make_deterministic(seed)
    if groups is None:
        groups = parameter_groups(
            model,
            new,
            rate_new=settings["learning_rate"]["compact"],
            rate_rest=settings["learning_rate"]["rest"],
            weight_decay=settings["weight_decay"],
        )
    steps = -(-len(blocks) // settings["batch_size"]) * settings["epochs"]

    count = partial(_flops_of_a_sequence, model, blocks, objective)
    reporter = _Reporter(blocks, settings["batch_size"], count=count, on_step=on_step)
    trained = model
    if together.parallel == "fsdp":
        if on_step is not None:
            raise ValueError("what changes the model from step to step cannot be split: use ddp")
        reporter.per_sequence[None] = count()  # as long as the model is whole
        trained, groups = twin_of(model, groups)
    optimizer = make_optimizer(settings["optimizer"], groups, beta2=settings["beta2"])
    stop = StopRequest()
    listening = nullcontext() if work is None else stop.listening()
    with tempfile.TemporaryDirectory() as scratch, listening:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        states = states_of(work, device) if work is not None else None
        args = _arguments(model, settings, seed, steps, str(states.path if states else scratch))
        if trained is not model:
            split_by_block(trained, args)
        trainer = _ObjectiveTrainer.of(trained, args, blocks, reporter)
        # Not handed over as an argument, which it refuses for a model that is split.
        trainer.optimizer = optimizer
        trainer.objective = objective
        trainer.micro_batch = settings.get("micro_batch")
        if together.size > 1:
            # The Trainer has seeded all processes alike; dropout shall differ between them.
            torch.manual_seed(seed + together.rank)
        newest = None
        if states is not None and work is not None:
            trainer.add_callback(StateKeeper(states, stop, reporter.curve))
            newest = newest_state(states)
        if newest is not None and work is not None:
            reporter.carry_on(read_curve(newest), step_of(newest))
            work.resumed.append(step_of(newest))
            log.info("resumed after step %d of %d", step_of(newest), steps)
        with _full_memory_told(settings):
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        if trainer.state.global_step < steps:
            raise Interrupted(
                f"{stop.asked} after step {trainer.state.global_step} of {steps}; its state is kept"
            )
    if trained is not model:
        take_over(model, trained)
    model.activation_checkpointing_disable()
    if together.first and not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise UserError(f"after {steps} steps the weights are no numbers; {_LOWER}")
    model.eval()
    return reporter.history


@contextmanager
def _full_memory_told(settings: dict[str, Any]) -> Iterator[None]:
    """Say which settings take less memory, where a GPU has too little."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        at_once = settings.get("micro_batch") or settings["batch_size"]
        if at_once > 1:
            less = f"set micro_batch to less than {at_once}"
        elif not settings.get("checkpointing"):
            less = "set checkpointing"
        else:
            less = "train on several GPUs (gpus, and parallel: fsdp)"
        raise UserError(
            f"the GPU's memory is full with {at_once} sequences at once; {less} "
            "(`iskd memory` tells what fits on which card)"
        ) from error


def _flops_of_a_sequence(model: PreTrainedModel, blocks: torch.Tensor, objective: Objective) -> int:
    """Count what training on one sequence costs, forward and backward.

    What checkpointing computes again is no part of it.
    """
    training, checkpointing = model.training, model.is_activation_checkpointing
    model.train()
    batch = {"input_ids": blocks[:1].long().to(model.device)}
    if checkpointing:
        model.activation_checkpointing_disable()
    try:
        return count_flops(lambda: objective(model, batch), model.parameters())
    finally:
        model.train(training)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})


def _arguments(
    model: PreTrainedModel, settings: dict[str, Any], seed: int, steps: int, folder: str
) -> TrainingArguments:
    """Say the settings of a run in the Trainer's words."""
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"] // world().size,
        lr_scheduler_type=_SCHEDULES[settings["schedule"]],
        warmup_steps=round(settings["warmup"] * steps),
        max_grad_norm=settings["clip"] or 0.0,
        bf16=settings["precision"] == "bfloat16",
        activation_checkpointing=settings.get("checkpointing", False),
        # The other kind puts no gradient on a model whose first inputs need none.
        activation_checkpointing_kwargs={"use_reentrant": False},
        torch_compile=settings.get("compile", False),
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // REPORTS),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        # The Trainer writes its own choice into the model's config, which is published.
        use_cache=model.config.use_cache,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        # Not only for a model with unused parts: without it DDP puts the gradients into another
        # order after the first step, and three numbers or more have another sum then. A run that
        # is resumed would not end with the same bits.
        ddp_find_unused_parameters=True,
    )
    if args.n_gpu > 1:
        # The Trainer would spread each batch over all GPUs in sight, as so many times a batch.
        args._n_gpu = 1
    return args


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


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
