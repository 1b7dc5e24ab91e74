"""Training on a GPU: tokens per second, share of the card's peak and memory, beside a bare loop.

    python -m tests.benchmarks.gpu [--seconds 300] [--out FILE] [--toy] [--compile]

Models have random weights and the shapes of GPT-2 small, SmolLM2-135M and Phi-1; nothing is
downloaded. Each is trained under bfloat16 autocast in three ways: ours on the next token, ours with
KL to a teacher of the same shape in bfloat16, and a bare loop with the same batch. All compile
their blocks. A part that would not end in its share of the time is left out, and says so.
"""

import argparse
import logging
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from iskd.models import family_of
from iskd.runtime.process import set_environment
from iskd.settings import LearningRates, ObjectiveSettings, TrainingSettings
from iskd.training import chunked
from iskd.training.chunked import chunked_loss
from iskd.training.compiling import compiled_blocks
from iskd.training.flops import count_flops
from iskd.training.loop import fine_tune, make_deterministic
from iskd.training.memory import largest_micro_batch, plan_memory
from iskd.training.objectives import Mixture, Objective, next_token_loss
from iskd.training.row_losses import Terms
from tests.benchmarks.budget import Budget, Enough, Stopwatch, now
from tests.benchmarks.timing import machine

# Dense bfloat16 products with float32 sums, in TFLOP/s, as NVIDIA's data sheets have them; the
# first name that a card's own contains is taken.
PEAKS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
# Of GPT-2 124M on one H100, as its authors tell (2024); llm.c's own count of FLOPs.
PUBLISHED = (
    ("llm.c, as published", 468_000, "40.5 %"),
    ("PyTorch 2.5 with torch.compile, as published", 462_000, "-"),
)
WAYS = ("ours", "ours with KL", "bare loop")

# So many that a report, which reads the losses, comes once in twenty as it would in a real run.
UPDATES = 1000


@dataclass(frozen=True)
class Shape:
    """A model's shape, and the tokens of a sequence; ``most`` sequences go in at once at most."""

    name: str
    config: PreTrainedConfig
    length: int = 1024
    most: int = 64


SHAPES = (
    Shape(
        "GPT-2 small",
        GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    ),
    Shape(
        "SmolLM2-135M",
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
    ),
    Shape(
        "Phi-1",
        PhiConfig(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            vocab_size=51200,
            max_position_embeddings=2048,
        ),
        most=16,
    ),
)


def toy(shape: Shape) -> Shape:
    """Make a shape small enough for a processor; its losses are worked out in chunks all the same.

    Args:
        shape: one of the above.
    """
    config = type(shape.config)(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        **({} if isinstance(shape.config, GPT2Config) else {"intermediate_size": 64}),
        vocab_size=chunked.LARGE_VOCABULARY + 1,
        max_position_embeddings=64,
    )
    return Shape(f"{shape.name} (toy)", config, length=32, most=2)


@dataclass(frozen=True)
class Run:
    """What a benchmark is run with: the device, whether blocks are compiled, the seconds of it."""

    device: torch.device
    compile: bool
    measured: float
    updates: int


def fresh(shape: Shape, run: Run) -> PreTrainedModel:
    """Make a model with random weights."""
    torch.manual_seed(1)
    with run.device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape.config)
    return model


def tokens(shape: Shape, sequences: int) -> torch.Tensor:
    """Draw the tokens of some sequences, int32 (sequences, length)."""
    generator = torch.Generator().manual_seed(1)
    size = (sequences, shape.length)
    return torch.randint(shape.config.vocab_size, size, generator=generator, dtype=torch.int32)


def objective_of(way: str, shape: Shape, run: Run) -> Objective:
    """Give the loss of a way to train."""
    if way != "ours with KL":
        return next_token_loss
    teacher = fresh(shape, run).to(torch.bfloat16)
    return Mixture(ObjectiveSettings(next_token=0.5, kl=0.5), teacher)


def ours(shape: Shape, batch: int, objective: Objective, run: Run, watch: Stopwatch) -> None:
    """Train as the workflow does."""
    settings = TrainingSettings(
        sequences=None,
        batch_size=batch,
        epochs=1,
        learning_rate=LearningRates(compact=1e-4, rest=1e-4),
        optimizer="adamw",
        beta2=0.95,
        weight_decay=0.1,
        schedule="cosine",
        warmup=0.0,
        clip=1.0,
        precision="bfloat16",
        compile=run.compile,
    )
    sequences = tokens(shape, batch * run.updates)
    fine_tune(fresh(shape, run), sequences, settings, seed=1, objective=objective, on_update=watch)


def bare(shape: Shape, batch: int, run: Run, watch: Stopwatch) -> None:
    """Train with nothing around it, at PyTorch's best: sums in any order, blocks compiled."""
    torch.use_deterministic_algorithms(mode=False)
    model = fresh(shape, run).train()
    fused = run.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
    )
    head = model.get_output_embeddings()

    def loss_of(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = head(hidden[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits.float(), labels.flatten())

    if run.compile:
        for block in family_of(model.config).blocks(model):
            block.compile(dynamic=False)
        loss_of = torch.compile(loss_of, dynamic=False)
    batches = tokens(shape, batch * 8).long().split(batch)
    batches = tuple(one.pin_memory() if fused else one for one in batches)
    for update in range(run.updates):
        watch(update, run.updates)
        ids = batches[update % len(batches)].to(run.device, non_blocking=True)
        with torch.autocast(run.device.type, torch.bfloat16):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            loss = loss_of(hidden, ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def fitting_batch(shape: Shape, room: int) -> int:
    """Find how many sequences fit, a power of two: with a teacher, and with the whole logits."""
    plan = partial(
        plan_memory,
        shape.config,
        length=shape.length,
        precision="bfloat16",
        teacher=shape.config,
        teacher_precision="bfloat16",
    )
    logits = 12 * shape.length * shape.config.vocab_size

    def whole(sequences: int) -> Any:
        found = plan(sequences)
        return replace(found, activations=found.activations + sequences * logits)

    fits = max(1, min(shape.most, largest_micro_batch(whole, room)))
    return 1 << (fits.bit_length() - 1)


def flops_of_a_token(shape: Shape, objective: Objective, run: Run) -> float:
    """Count what a token of a training costs, forward and backward, a teacher included."""
    model = fresh(shape, run)
    one = {"input_ids": tokens(shape, 1).long().to(run.device)}
    return count_flops(lambda: objective(model, one), model.parameters()) / shape.length


def measure(shape: Shape, way: str, batch: int, run: Run) -> list[str]:
    """Train in one way, and give the cells of its row."""
    watch = Stopwatch(run.measured)
    objective = objective_of(way, shape, run)
    flops = flops_of_a_token(shape, objective, run)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        if way == "bare loop":
            bare(shape, batch, run, watch)
        else:
            ours(shape, batch, objective, run, watch)
    except Enough:
        pass
    speed = batch * shape.length / watch.step_seconds
    peak = peak_of(card())
    share = f"{flops * speed / peak:.1%}".replace("%", " %") if peak else "-"
    cuda = torch.cuda.is_available()
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if cuda else "-"
    return [str(batch), f"{speed:,.0f}", share, memory, f"{watch.setup:.0f} s"]


def card() -> str:
    """Name the card, or say that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def peak_of(name: str) -> float | None:
    """Give a card's peak in FLOP/s, dense bfloat16; None for one that is not known here."""
    words = name.replace("-", " ").split()
    for known, teraflops in PEAKS.items():
        if all(word in words for word in known.split()):
            return teraflops * 1e12
    return None


def loss_alone(shape: Shape, batch: int, rows: int, run: Run) -> list[str]:
    """Time the loss in chunks by itself, forward and backward, plain and compiled."""
    make_deterministic(1)
    model = fresh(shape, run)
    size = (batch * (shape.length - 1), shape.config.hidden_size)
    hidden = torch.randn(size, device=run.device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(shape.config.vocab_size, size[:1], device=run.device)
    whole, chunked.ROWS = chunked.ROWS, rows

    def milliseconds() -> str:
        times = []
        for _ in range(4):
            before = now()
            with torch.autocast(run.device.type, torch.bfloat16):
                head = model.get_output_embeddings()
                loss = chunked_loss(hidden, head, labels, Terms(1.0, 0.0, 1.0))
            loss.backward()
            times.append(now() - before)
        return f"{1000 * min(times[1:]):.1f} ms"

    try:
        cells = [f"{rows:,}", milliseconds()]
        if run.compile:
            with compiled_blocks([]):
                cells.append(milliseconds())
    finally:
        chunked.ROWS = whole
    return cells if run.compile else [*cells, "-"]


def row(cells: list[str]) -> str:
    """Write a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def report(shapes: tuple[Shape, ...], run: Run, seconds: float, sizes: tuple[int, ...]) -> str:
    """Measure everything that the time allows, and write it in Markdown.

    Args:
        shapes: of the models.
        run: on what, and how.
        seconds: the time for all of it.
        sizes: rows of a chunk, to be tried on the first shape.
    """
    budget = Budget(seconds, len(shapes) * len(WAYS) + len(sizes), least=15 if run.compile else 3)
    peak = peak_of(card())
    limit = f", peak {peak / 1e12:,.0f} TFLOP/s in dense bfloat16" if peak else ""
    day = datetime.now(UTC).date().isoformat()
    lines = [f"{card()}{limit}; {day}; {machine()}; bfloat16 autocast; ", ""]
    lines[0] += "blocks compiled" if run.compile else "nothing compiled"
    head = ["Model", "Training", "sequences at once", "tokens/s", "of the peak", "memory", "set-up"]
    lines += [row(head), row(["---"] * len(head))]
    print(lines[0], "\n", "\n".join(lines[2:]), sep="\n", flush=True)
    for number, shape in enumerate(shapes):
        batch = shape.most
        if torch.cuda.is_available():
            batch = fitting_batch(shape, int(0.8 * torch.cuda.mem_get_info()[0]))
        for way in WAYS:
            cells = budget.spend(partial(measure, shape, way, batch, run))
            cells = ["-", cells, "-", "-", "-"] if isinstance(cells, str) else cells
            lines.append(row([f"{shape.name}, {shape.length} tokens", way, *cells]))
            print(lines[-1], flush=True)
        if number == 0:
            for who, speed, share in PUBLISHED:
                where = "GPT-2 small, one H100"
                lines.append(row([where, who, "-", f"{speed:,}", share, "-", "-"]))
                print(lines[-1], flush=True)
    lines += ["", f"Loss of {shapes[0].name} alone, in chunks, forward and backward:", ""]
    lines += [row(["positions at once", "plain", "compiled"]), row(["---"] * 3)]
    for size in sizes:
        cells = budget.spend(partial(loss_alone, shapes[0], min(16, shapes[0].most), size, run))
        lines.append(row([f"{size:,}", cells, "-"] if isinstance(cells, str) else cells))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, and write them into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="time for all parts")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/gpu.md"))
    parser.add_argument("--toy", action="store_true", help="toy shapes, on a processor")
    parser.add_argument("--compile", action="store_true", help="compile toys too (C++ compiler)")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    small = given.toy or not torch.cuda.is_available()
    threads = 1 if small else os.cpu_count() or 1
    set_environment(threads, network=False)
    torch.set_num_threads(threads)
    shapes: tuple[Shape, ...] = SHAPES
    sizes: tuple[int, ...] = (512, 2048, 8192)
    if small:
        print("no GPU" if not given.toy else "--toy", end=": ")
        print("toy shapes on a processor; the numbers say nothing about any card\n")
        torch.cuda.is_available = lambda: False  # with --toy beside a card
        shapes, sizes = tuple(map(toy, SHAPES)), (16,)
        run = Run(torch.device("cpu"), given.compile, measured=0.2, updates=30)
    else:
        run = Run(torch.device("cuda"), compile=True, measured=5.0, updates=UPDATES)
    text = report(shapes, run, given.seconds, sizes)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
