"""One fine-tuning run, on transformers' Trainer."""

import json
import logging
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from iskd.errors import UserError
from iskd.training.objectives import Objective, next_token_loss
from iskd.training.optimizer import make_optimizer, parameter_groups

log = logging.getLogger("iskd.training")

# How many times a run reports to its log and its history: enough for a curve, few enough to read.
REPORTS = 50


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """Token sequences of one length as a data set; draws nothing at random itself."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index].long()}


class _ObjectiveTrainer(Trainer):
    """The library's Trainer with one of our objectives as the loss."""

    objective: Objective = staticmethod(next_token_loss)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Give the objective's loss; every sequence has the same length, so the mean is exact."""
        del return_outputs, num_items_in_batch
        return self.objective(model, inputs)


class _Reporter(TrainerCallback):
    """Write the training curve, and say in the log how far the run is and what is left."""

    def __init__(self, history: list[dict[str, Any]], blocks: torch.Tensor, batch: int) -> None:
        self.history = history
        self.sequences, self.length = blocks.shape
        self.batch = batch
        self.started = time.monotonic()

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
        epochs, batches = divmod(done, -(-self.sequences // self.batch))
        seen = epochs * self.sequences + batches * self.batch
        left = (time.monotonic() - self.started) / done * (state.max_steps - done)
        self.history.append(
            {
                "step": done,
                "tokens": seen * self.length,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
            }
        )
        log.info(
            "step %d of %d, loss %.4f, about %.0f s left", done, state.max_steps, logs["loss"], left
        )


def make_deterministic(seed: int) -> None:
    """Seed torch and ask for algorithms with a fixed order of summation."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def fine_tune(
    model: PreTrainedModel,
    blocks: torch.Tensor,
    settings: dict[str, Any],
    *,
    seed: int,
    new: Collection[nn.Module] = (),
    objective: Objective = next_token_loss,
) -> list[dict[str, Any]]:
    """Train a model in place.

    Args:
        model: the model; its parameters stay float32, bfloat16 precision is autocast.
        blocks: token sequences, int (sequences, length).
        settings: a ``Training`` section of the config, as a dict.
        seed: seed of the data's order and of dropout.
        new: modules that get the high learning rate; all the rest gets the low one.
        objective: the loss.

    Returns:
        the training curve: optimiser step, tokens seen, loss in nats, low learning rate

    Raises:
        UserError: the sequences are longer than the model takes.
    """
    if blocks.shape[1] > model.config.max_position_embeddings:
        raise UserError(
            f"the model takes {model.config.max_position_embeddings} positions, the sequences have "
            f"{blocks.shape[1]}; lower corpus.block_length"
        )
    seed %= 2**32  # numpy, which the Trainer seeds too, takes no more
    make_deterministic(seed)
    rates = settings["learning_rate"]
    optimizer = make_optimizer(
        settings["optimizer"],
        parameter_groups(
            model,
            new,
            rate_new=rates["compact"],
            rate_rest=rates["rest"],
            weight_decay=settings["weight_decay"],
        ),
        beta2=settings["beta2"],
    )
    steps = -(-len(blocks) // settings["batch_size"]) * settings["epochs"]
    history: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings["epochs"],
            per_device_train_batch_size=settings["batch_size"],
            lr_scheduler_type=_SCHEDULES[settings["schedule"]],
            warmup_steps=round(settings["warmup"] * steps),
            max_grad_norm=settings["clip"] or 0.0,
            bf16=settings["precision"] == "bfloat16",
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
        )
        if args.n_gpu > 1:
            # The Trainer would spread each batch over all GPUs in sight, as so many times a batch.
            args._n_gpu = 1
        trainer = _ObjectiveTrainer(
            model=model,
            args=args,
            train_dataset=TokenBlocks(blocks),
            optimizers=(optimizer, None),
            callbacks=[_Reporter(history, blocks, settings["batch_size"])],
        )
        trainer.objective = objective
        trainer.remove_callback(_printer())
        trainer.train()
    model.eval()
    return history


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def write_history(history: list[dict[str, Any]], path: Path) -> None:
    """Write a training curve as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in history:
            stream.write(json.dumps(row, sort_keys=True) + "\n")
