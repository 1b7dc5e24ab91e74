"""One fine-tuning run, on transformers' Trainer."""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from iskd.data.corpus import check_length
from iskd.errors import UserError
from iskd.runtime.distributed import check_alike, world
from iskd.runtime.signals import Interrupted, StopRequest
from iskd.runtime.workdir import WorkFolder
from iskd.settings import TrainingSettings
from iskd.training.compiling import compiled_blocks, uncompiled
from iskd.training.curve import LOWER_RATE, REPORTS, OnUpdate, Phase, Reporter
from iskd.training.flops import count_flops
from iskd.training.no_wait import one_sequence_each
from iskd.training.objectives import Objective, next_token_loss
from iskd.training.optimizer import Grouping, make_optimizer, parameter_groups
from iskd.training.resuming import StateKeeper, newest_state, read_curve, states_of, update_of
from iskd.training.sharding import copy_to_train, split_by_block, take_over
from iskd.training.tracking import followed
from iskd.training.trainer import ObjectiveTrainer

log = logging.getLogger("iskd.training")


def make_deterministic(seed: int) -> None:
    """Seed torch and ask for algorithms with a fixed order of summation.

    On a GPU they are demanded: flash and memory-efficient attention sum up gradients in any order
    where torch is told only to warn (its note "Reproducibility").
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=not torch.cuda.is_available())
    # That would also fill all memory before it is written: it finds reads of what nobody wrote,
    # changes no result where there are none, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def fine_tune(
    model: PreTrainedModel,
    sequences: torch.Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    compact: Collection[nn.Module] = (),
    objective: Objective = next_token_loss,
    grouping: Grouping = parameter_groups,
    on_update: OnUpdate | None = None,
    work: WorkFolder | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place.

    With a work folder, a run that was killed goes on from its newest state and ends with the same
    bits as one that was not. Several processes (``iskd.runtime.distributed``) share each batch; all
    must call this alike.

    Args:
        model: the model; its parameters stay float32, bfloat16 precision is autocast.
        sequences: tokens, int (sequences, length).
        settings: how it is trained.
        seed: seed of the data's order and of dropout.
        compact: modules that get the high learning rate; all the rest gets the low one.
        objective: the loss.
        grouping: sorts the parameters into the optimiser's groups; the learning rate reported is
            the first one's.
        on_update: called before each optimiser update, the first one included. What it does must
            follow from its arguments alone.
        work: where the states of the run are kept, if it is to survive being killed.

    Returns:
        the training curve, its last row at the last update: the update, tokens seen, loss (mean
        since the row before), low learning rate (the high one where all is compact), and FLOPs so
        far (forward and backward, the teacher's included; counted on one sequence of a throw-away
        pass, which they are proportional to)

    Raises:
        UserError: the sequences are longer than the model takes; and as :func:`train`.
        ValueError: as :func:`train`.
        Interrupted: as :func:`train`.
    """
    check_length(model, sequences)
    return train(
        model,
        sequences,
        settings,
        seed=seed,
        compact=compact,
        objective=objective,
        grouping=grouping,
        on_update=on_update,
        work=work,
    )


def train(
    module: nn.Module,
    sequences: torch.Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    compact: Collection[nn.Module],
    objective: Objective,
    grouping: Grouping = parameter_groups,
    on_update: OnUpdate | None = None,
    work: WorkFolder | None = None,
    phase: Phase = "joint",
) -> list[dict[str, Any]]:
    """Train a model, or a part of one, in place: what :func:`fine_tune` and a warm start share.

    Args:
        module: what is trained; the objective is called with it and a batch.
        sequences: as in :func:`fine_tune`, and so all below but ``phase``.
        settings: how it is trained.
        seed: seed of the data's order and of dropout.
        compact: modules that get the high learning rate.
        objective: the loss.
        grouping: sorts the parameters into the optimiser's groups.
        on_update: called before each optimiser update.
        work: where the states of the run are kept.
        phase: what the training curve's rows call it.

    Returns:
        the training curve

    Raises:
        UserError: the training diverges, or does not fit into the GPU's memory.
        ValueError: ``on_update`` is to change a model that several processes share in parts, or
            such a model, or one that a stochastic replacement changes, is to be compiled.
        Interrupted: the process was asked to stop; the state is saved.
    """
    seed %= 2**32  # numpy, which the Trainer seeds too, takes no more
    together = world()
    check_alike(module)
    make_deterministic(seed)
    groups = grouping(module, compact, settings)
    updates = -(-len(sequences) // settings.batch_size) * settings.epochs

    count = partial(_flops_of_a_sequence, module, sequences, objective, compiled=settings.compile)
    reporter = Reporter(
        sequences, settings.batch_size, count=count, on_update=on_update, phase=phase
    )
    trained = module
    if together.parallel == "fsdp" and isinstance(module, PreTrainedModel):
        if on_update is not None:
            raise ValueError("what changes the model from step to step cannot be split: use ddp")
        reporter.per_sequence[None] = count()  # as long as the model is whole
        trained, groups = copy_to_train(module, groups)
    optimizer = make_optimizer(groups, settings)
    _hint_at_bfloat16(settings.precision)
    stop = StopRequest()
    with (
        tempfile.TemporaryDirectory() as scratch,
        nullcontext() if work is None else stop.handling_signals(),
    ):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        states = states_of(work, device, phase, seed) if work is not None else None
        args = _arguments(module, settings, seed, updates, str(states.path if states else scratch))
        if trained is not module:
            split_by_block(trained, args)
        trainer = ObjectiveTrainer.of(trained, args, sequences, reporter)
        # Not handed over as an argument, which it refuses for a model that is split.
        trainer.optimizer = optimizer
        trainer.objective = objective
        trainer.micro_batch = settings.micro_batch
        if together.size > 1:
            # The Trainer has seeded all processes alike; dropout shall differ between them.
            torch.manual_seed(seed + together.rank)
        newest = None
        if states is not None and work is not None:
            trainer.add_callback(StateKeeper(states, stop, reporter.curve))
            newest = newest_state(states)
        if newest is not None and work is not None:
            reporter.carry_on(read_curve(newest), update_of(newest))
            work.resumed.append(update_of(newest))
            log.info("resumed after step %d of %d", update_of(newest), updates)
        with (
            _full_memory_explained(settings),
            followed(trainer, reporter),
            _quick(module, objective, settings),
        ):
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        if trainer.state.global_step < updates:
            raise Interrupted(
                f"{stop.signal_name} after step {trainer.state.global_step} of {updates}; "
                "its state is kept"
            )
    if trained is not module:
        take_over(module, trained)
    # For autocast the library has put another forward in the place of the class's own.
    for name in ("forward", "_original_forward"):
        module.__dict__.pop(name, None)
    if isinstance(module, PreTrainedModel):
        module.activation_checkpointing_disable()
    if together.first and not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise UserError(f"after {updates} steps the weights are no numbers; {LOWER_RATE}")
    module.eval()
    return reporter.history


def _hint_at_bfloat16(precision: str) -> None:
    """Say in the log where a training in float32 leaves a processor's bfloat16 unused."""
    if precision != "float32" or torch.cuda.is_available():
        return
    found = torch.cpu.get_capabilities()
    if found.get("avx512_bf16") or found.get("amx_bf16"):
        log.info(
            "this processor has instructions for bfloat16, with which a large model trains up to "
            "four times as fast: set precision: bfloat16 in the training settings"
        )


@contextmanager
def _full_memory_explained(settings: TrainingSettings) -> Iterator[None]:
    """Say which settings take less memory, where a GPU has too little."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        at_once = settings.micro_batch or settings.batch_size
        if at_once > 1:
            less = f"set micro_batch to less than {at_once}"
        elif not settings.checkpointing:
            less = "set checkpointing"
        else:
            less = "train on several GPUs (gpus, and parallel: fsdp)"
        raise UserError(
            f"the GPU's memory is full with {at_once} sequences at once; {less} "
            "(`iskd memory` tells what fits on which card)"
        ) from error


@contextmanager
def _quick(module: nn.Module, objective: Objective, settings: TrainingSettings) -> Iterator[None]:
    """Let no device wait, and compile the model and its teacher where the settings ask for it."""
    compiled: AbstractContextManager[None] = nullcontext()
    if settings.compile and isinstance(module, PreTrainedModel):
        if world().parallel == "fsdp":
            raise ValueError("blocks that are split are not compiled: use ddp")
        compiled = compiled_blocks([module, getattr(objective, "teacher", None)])
    with one_sequence_each(), compiled:
        yield


def _flops_of_a_sequence(
    module: nn.Module, sequences: torch.Tensor, objective: Objective, *, compiled: bool = False
) -> int:
    """Count what training on one sequence costs, forward and backward.

    What checkpointing computes again is no part of it.
    """
    training = module.training
    whole = module if isinstance(module, PreTrainedModel) else None
    checkpointing = whole is not None and whole.is_activation_checkpointing
    module.train()
    device = next(module.parameters()).device
    batch = {"input_ids": sequences[:1].long().to(device), "index": torch.zeros(1).long()}
    if whole is not None and checkpointing:
        whole.activation_checkpointing_disable()
    try:
        with uncompiled(compiled):
            return count_flops(lambda: objective(module, batch), module.parameters())
    finally:
        module.train(training)
        if whole is not None and checkpointing:
            whole.activation_checkpointing_enable({"use_reentrant": False})


def _arguments(
    module: nn.Module, settings: TrainingSettings, seed: int, updates: int, folder: str
) -> TrainingArguments:
    """Say the settings of a run in the Trainer's words."""
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // world().size,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=round(settings.warmup * updates),
        max_grad_norm=settings.clip or 0.0,
        bf16=settings.precision == "bfloat16",
        activation_checkpointing=settings.checkpointing,
        # The other kind puts no gradient on a model whose first inputs need none.
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, updates // REPORTS),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        # The Trainer writes its own choice into the model's config, which is published.
        use_cache=module.config.use_cache if isinstance(module, PreTrainedModel) else False,
        use_cpu=not torch.cuda.is_available(),
        # A batch is uploaded while the device computes, and no loss is read but for a report: the
        # library would look at each for numbers that are none, as the curve does at every report.
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        logging_nan_inf_filter=False,
        # Not only for a model with unused parts: without it DDP puts the gradients into another
        # order after the first update, and three numbers or more have another sum then. A run that
        # is resumed would not end with the same bits.
        ddp_find_unused_parameters=True,
    )
    if args.n_gpu > 1:
        # The Trainer would spread each batch over all GPUs in sight, as so many times a batch.
        args._n_gpu = 1
    return args


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
