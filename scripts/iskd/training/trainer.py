"""The Trainer of transformers with one of our objectives; processes may share its batches."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from iskd.runtime.distributed import World, mean, share, world
from iskd.training.curve import Reporter
from iskd.training.objectives import Objective, next_token_loss


class TokenSequences(Dataset[dict[str, torch.Tensor]]):
    """Token sequences of one length as a data set; draws nothing at random itself."""

    def __init__(self, sequences: torch.Tensor) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # Its place among these is what an objective finds the recorded answers by.
        return {"input_ids": self.sequences[index].long(), "index": torch.tensor(index)}


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


class ObjectiveTrainer(Trainer):  # type: ignore[misc] # the library is not typed
    """The library's Trainer with one of our objectives as the loss.

    Of a batch that several processes share, each sees its part. Their gradients are averaged, so
    that each loss is weighted with the part's length: in sum the batch's mean, as if seen by one.
    """

    objective: Objective = staticmethod(next_token_loss)
    reporter: Reporter
    micro_batch: int | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        args: TrainingArguments,
        sequences: torch.Tensor,
        reporter: Reporter,
    ) -> "ObjectiveTrainer":
        """Make one that reports to our own log instead of printing."""
        made = cls(
            model=model, args=args, train_dataset=TokenSequences(sequences), callbacks=[reporter]
        )
        made.reporter = reporter
        made.remove_callback(_printer())
        return made

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Have the processes share the batches that one alone would see, in the same order."""
        together = world()
        if together.size == 1:
            alone: DataLoader[Any] = super().get_train_dataloader()
            return alone
        dataset = self.train_dataset
        shares = _Shares(RandomSampler(dataset), self.reporter.batch, together)
        loader = DataLoader(
            dataset,
            batch_sampler=shares,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # As the library prepares it for one process: seeded order, device, epochs.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=self.args.dataloader_pin_memory,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        return prepared

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
        batch = self._prepare_inputs(inputs)
        ids = batch["input_ids"]
        counted, weight = self._part()
        at_once = self.micro_batch or len(ids)
        parts = ids.split(at_once)
        places = batch["index"].split(at_once)
        total = torch.zeros((), device=ids.device)
        next_token: torch.Tensor | None = None
        for number, (part, index) in enumerate(zip(parts, places, strict=True), 1):
            # Processes exchange their gradients once per batch.
            waits = number < len(parts) and world().size > 1
            with self.accelerator.no_sync(model) if waits else nullcontext():
                with self.accelerator.autocast():
                    loss = self.objective(model, {"input_ids": part, "index": index, **counted})
                loss = loss * (weight * len(part) / len(ids))
                self.accelerator.backward(loss)
            total += loss.detach()
            told: torch.Tensor | None = getattr(self.objective, "next_token", None)
            if told is not None:
                share_of_it = told * (weight * len(part) / len(ids))
                next_token = share_of_it if next_token is None else next_token + share_of_it
        self.reporter.losses.append(mean(total))
        if next_token is not None:
            self.reporter.next_token.append(mean(next_token))
        return total

    def _part(self) -> tuple[dict[str, torch.Tensor], float]:
        """Say what an objective must know of this process's part of a batch, and its weight."""
        together = world()
        if together.size == 1:
            return {}, 1.0
        whole = self.reporter.batch_of(self.state.global_step)
        part = len(range(whole)[share(whole, together)])
        return {"counted": torch.tensor(part)}, part * together.size / whole


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    printer: type[TrainerCallback] = PrinterCallback
    return printer
