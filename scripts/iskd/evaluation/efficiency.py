"""How fast a model reads and writes and what memory that takes, measured beside its teacher.

Both models are measured in the same job, in turn, so what slows the machine down slows both down:
the ratio of the two is the result, and holds where the speeds themselves do not.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from iskd.evaluation.metric import Metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL, TEACHER = "model", "teacher"
PREFILL, DECODE, MEMORY, DRAFT = "prefill", "decode", "memory", "draft"


@dataclass(frozen=True)
class Load:
    """The load that a model is measured with.

    Attributes:
        batch_sizes: texts at once.
        prompt_tokens: tokens read before the first is written.
        new_tokens: tokens written, one after the other, with a KV cache.
        repeats: measurements that count.
        warmup: measurements before these.
        seed: seed of the tokens that are read; which they are does not matter for the time.
    """

    batch_sizes: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    seed: int


def measure(
    model: "PreTrainedModel", teacher: "PreTrainedModel", load: Load
) -> Iterator[dict[str, Any]]:
    """Measure a model and its teacher in turn, on the device that they are on.

    Of each repeat, teacher and model take turns in being first. Prefill is one forward pass over
    the prompts that fills the KV cache and predicts one token each; decoding writes `new_tokens`
    tokens greedily from there, one forward pass each. The device has finished when the clock is
    read. Memory is that of the weights plus the most that prefill and decoding hold beyond them
    (cache, activations, logits): on CUDA by the allocator's peak, on a CPU by the sum of what
    torch's profiler saw allocated and freed, in a pass of its own.

    Yields:
        records with `who` ("model" or "teacher"), `batch_size`, `phase`; for "prefill" and "decode"
        `repeat` (from 0, warm-up left out), `seconds` and `tokens`; for "memory" `bytes`
    """
    models = {TEACHER: teacher, MODEL: model}
    for size in load.batch_sizes:
        yield from measure_speed(models, load, size)
        prompts = _prompts(models, load, size)
        for who, each in models.items():
            held = _weights(each) + _peak(each, prompts, min(load.new_tokens, 4))
            yield {"who": who, "batch_size": size, "phase": MEMORY, "bytes": held}


def measure_speed(
    models: Mapping[str, "PreTrainedModel"], load: Load, size: int
) -> Iterator[dict[str, Any]]:
    """Measure prefill and decoding of models in turn, each repeat in the other order.

    Args:
        models: who they are, and the models; they end in evaluation mode.
        load: the load of each.
        size: texts at once.

    Yields:
        the records of :func:`measure` but for "memory"; `who` is a key of `models`
    """
    prompts = _prompts(models, load, size)
    for repeat in range(-load.warmup, load.repeats):
        for who in list(models)[:: 1 if repeat % 2 == 0 else -1]:
            for phase, seconds, tokens in _timed(models[who].eval(), prompts, load.new_tokens):
                if repeat >= 0:
                    yield {
                        "who": who,
                        "batch_size": size,
                        "phase": phase,
                        "repeat": repeat,
                        "seconds": seconds,
                        "tokens": tokens,
                    }


def _prompts(models: Mapping[str, "PreTrainedModel"], load: Load, size: int) -> torch.Tensor:
    """Draw tokens that all of the models know, (texts, tokens)."""
    generator = torch.Generator().manual_seed(load.seed)
    known = min(each.config.vocab_size for each in models.values())
    return torch.randint(known, (size, load.prompt_tokens), generator=generator)


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Metric]]:
    """Give medians over the records of :func:`measure`, with the smallest and largest repeat.

    Returns:
        for "teacher" and "model" the metrics `prefill_b<B>` and `decode_b<B>` (tokens/s) and
        `memory_b<B>` (bytes); for "model" also `<metric>_ratio`, model / teacher, of times the
        median over the pairs of one repeat. Where it was tried as a draft, also
        `draft_acceptance`, the share of its tokens that the teacher kept, and `draft_ratio`, the
        teacher's speed with it over that without
    """
    found: dict[str, dict[str, Metric]] = {TEACHER: {}, MODEL: {}}
    drafts = [record for record in records if record["phase"] == DRAFT]
    for record in drafts:
        acceptance = Metric(record["acceptance"], None, record["prompts"])
        found[MODEL] |= {"draft_acceptance": acceptance, "draft_ratio": Metric(**record["ratio"])}
    records = [record for record in records if record["phase"] != DRAFT]
    sizes = dict.fromkeys(record["batch_size"] for record in records)
    for size in sizes:
        for phase in (PREFILL, DECODE):
            speeds = {who: _speeds(records, who, size, phase) for who in found}
            for who, values in speeds.items():
                if values:
                    found[who][f"{phase}_b{size}"] = _median(values)
            if speeds[MODEL] and speeds[TEACHER]:
                pairs = zip(speeds[MODEL], speeds[TEACHER], strict=True)
                ratios = [ours / theirs for ours, theirs in pairs]
                found[MODEL][f"{phase}_b{size}_ratio"] = _median(ratios)
        held = {
            record["who"]: record["bytes"]
            for record in records
            if (record["batch_size"], record["phase"]) == (size, MEMORY)
        }
        for who, number in held.items():
            found[who][f"{MEMORY}_b{size}"] = Metric(float(number), None, 1)
        if len(held) == len(found):
            ratio = held[MODEL] / held[TEACHER]
            found[MODEL][f"{MEMORY}_b{size}_ratio"] = Metric(ratio, None, 1)
    return found


def _speeds(records: Sequence[Mapping[str, Any]], who: str, size: int, phase: str) -> list[float]:
    wanted = (who, size, phase)
    return [
        record["tokens"] / record["seconds"]
        for record in records
        if (record["who"], record["batch_size"], record["phase"]) == wanted
    ]


def _median(values: Sequence[float]) -> Metric:
    return Metric(statistics.median(values), None, len(values), min(values), max(values))


@torch.inference_mode()
def _timed(
    model: "PreTrainedModel", prompts: torch.Tensor, new_tokens: int
) -> Iterator[tuple[str, float, int]]:
    """Read prompts and write on, and give each phase's seconds and tokens."""
    tokens = prompts.to(model.device)
    _wait(model)
    start = time.perf_counter()
    out = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    newest = out.logits[:, -1:].argmax(dim=-1)
    _wait(model)
    read = time.perf_counter()
    for _ in range(new_tokens):
        out = model(input_ids=newest, past_key_values=out.past_key_values, use_cache=True)
        newest = out.logits[:, -1:].argmax(dim=-1)
    _wait(model)
    written = time.perf_counter()
    yield PREFILL, read - start, prompts.numel()
    yield DECODE, written - read, len(prompts) * new_tokens


def _wait(model: "PreTrainedModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _weights(model: "PreTrainedModel") -> int:
    """Give the bytes of all parameters and buffers in memory; shared ones count once."""
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(held.values())


def _peak(model: "PreTrainedModel", prompts: torch.Tensor, new_tokens: int) -> int:
    """Give the most bytes held at once beyond the weights while prompts are read and continued."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        list(_timed(model, prompts, new_tokens))
        return torch.cuda.max_memory_allocated(model.device) - before
    with _allocations() as seen:
        list(_timed(model, prompts, new_tokens))
    held = most = 0
    for change in seen:
        held += change
        most = max(most, held)
    return most


@contextmanager
def _allocations() -> Iterator[list[int]]:
    """Collect what is allocated (bytes above 0) and freed (below 0) on the CPU, in order."""
    changes: list[int] = []
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield changes
    # No public interface gives these events singly; the profiler's own memory timeline reads them.
    events = profile.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    changes += [event.nbytes() for event in memory]
