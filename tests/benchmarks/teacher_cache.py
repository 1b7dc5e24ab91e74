"""A step with a teacher in its loss, asked each time or recorded: time, size, and what is lost.

    python -m tests.benchmarks.teacher_cache [--rounds 5] [--model FOLDER --tokens FILE]

A step is forward, backward, clipping and Adam, under bfloat16 autocast, of SmolLM2-135M's shape
with one block replaced, at 8 sequences of 256 tokens; all kinds in turn, the first step of each run
left out. With a model and its tokens (an artifact of ``import_model`` and one's
``train.safetensors`` of ``prepare_corpus``) the losses are real ones; else weights and tokens are
random.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from iskd.data.corpus import load_sequences
from iskd.models.folder import load_model
from iskd.models.recipes import resolve_sizes
from iskd.models.substitution import replace_block
from iskd.runtime.process import set_environment
from iskd.settings import CacheKind, LearningRates, ObjectiveSettings, RecordingSettings
from iskd.settings import TrainingSettings as Settings
from iskd.training.objectives import Mixture, Objective
from iskd.training.optimizer import make_optimizer, parameter_groups
from iskd.training.recording import record
from iskd.training.teacher_cache import TeacherCache
from tests.benchmarks.timing import machine, spread

BATCH, LENGTH, BATCHES = 8, 256, 3
SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152,
    max_position_embeddings=8192,
    rope_theta=100_000,
    tie_word_embeddings=True,
)
SETTINGS = Settings(
    epochs=1,
    batch_size=BATCH,
    learning_rate=LearningRates(compact=1e-4, rest=2e-5),
    optimizer="adamw",
    weight_decay=0.0,
    beta2=0.95,
    schedule="constant",
    warmup=0.0,
    clip=1.0,
    precision="bfloat16",
)
Way = tuple[str, CacheKind, float]
WAYS: tuple[Way, ...] = (
    ("without KL", "none", 0.0),
    *((f"{kind}, T = {heat:g}", kind, heat) for heat in (1.0, 2.0) for kind in ("none", "sampled")),
    ("exact, T = 2", "exact", 2.0),
)
LOST = (4, 12, 48)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=Path)
    given = parser.parse_args()
    set_environment(torch.get_num_threads(), network=False)
    torch.manual_seed(1)
    if given.model is None:
        teacher = AutoModelForCausalLM.from_config(SMOLLM2).eval()
        tokens = torch.randint(SMOLLM2.vocab_size, (BATCH * BATCHES, LENGTH), dtype=torch.int32)
    else:
        teacher = load_model(given.model)
        tokens = load_sequences(given.tokens).flatten()
        tokens = tokens[: BATCH * BATCHES * LENGTH].view(-1, LENGTH)
    print(f"{machine()}, {torch.get_num_threads()} threads\n")
    student, new = replace_block(
        copy.deepcopy(teacher),
        15,
        resolve_sizes(teacher.config, "narrow", replaced=1),
        "teacher",
        1,
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(teacher, tokens, Path(folder))
        ways = {name: bench.objective(kind, heat) for name, kind, heat in WAYS}
        lost(bench, student)
        times(student, new, tokens, ways, given.rounds)


class Bench:
    """A teacher, and the tokens that it is asked about."""

    def __init__(self, teacher: PreTrainedModel, tokens: torch.Tensor, folder: Path) -> None:
        self.teacher = teacher
        self.tokens = tokens
        self.folder = folder

    def recorded(self, kind: str, heat: float, draws: int = 12) -> TeacherCache:
        """Record the answers to all tokens, in bfloat16, and print what that takes."""
        sampled = kind == "sampled"
        settings = RecordingSettings(
            kind="sampled" if sampled else "exact",
            teacher_precision="bfloat16",
            temperature=heat if sampled else None,
            draws=draws if sampled else None,
            sequences=None,
            validation=0,
        )
        out, count = self.folder / settings.name, self.tokens.numel()
        if not out.exists():
            out.mkdir()
            started = time.perf_counter()
            own = copy.deepcopy(self.teacher)
            record(lambda: own, self.tokens, settings, step=1, seed=1, out=out)
            speed = count / (time.perf_counter() - started)
            size = sum(file.stat().st_size for file in out.glob("answers-*")) / count
            print(
                f"{settings.name}: {size:,.0f} bytes a token, recorded at {speed:,.0f} tokens/s",
                flush=True,
            )
        return TeacherCache([out], torch.arange(len(self.tokens)))

    def objective(self, kind: CacheKind, heat: float) -> Objective:
        """Give the loss of one way."""
        if not heat:
            return Mixture(ObjectiveSettings())
        settings = ObjectiveSettings(0.5, 0.5, temperature=heat, teacher_precision="bfloat16")
        if kind == "none":
            return Mixture(settings, copy.deepcopy(self.teacher).bfloat16())
        return Mixture(settings, cache=self.recorded(kind, heat))


@torch.no_grad()
def lost(bench: Bench, student: PreTrainedModel) -> None:
    """Print how far sampled losses are from the exact one, over all tokens."""
    batch = {"input_ids": bench.tokens.long(), "index": torch.arange(len(bench.tokens))}
    for heat in (1.0, 2.0):
        settings = ObjectiveSettings(0.0, 1.0, temperature=heat)
        with torch.autocast("cpu", torch.bfloat16):
            exact = bench.recorded("exact", heat)
            true = Mixture(settings, cache=exact)(student, batch).item()
            print(f"KL at T = {heat:g}: {true:.4f} nats, from {bench.tokens.numel():,} tokens")
            for draws in LOST:
                drawn = bench.recorded("sampled", heat, draws)
                found = Mixture(settings, cache=drawn)(student, batch).item()
                print(f"  {draws} draws: {found:.4f}, {found - true:+.4f}", flush=True)


def times(
    student: PreTrainedModel,
    new: nn.Module,
    tokens: torch.Tensor,
    ways: dict[str, Objective],
    rounds: int,
) -> None:
    """Print the time of a step of each way, in that of one without KL."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    optimizer = make_optimizer(parameter_groups(student, [new], SETTINGS), SETTINGS)
    student.train()
    index = torch.arange(len(tokens))
    for number in range(rounds + 1):
        names = list(ways)
        # What ran before leaves memory behind, so that each goes first in turn.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            place = number % BATCHES * BATCH
            part = slice(place, place + BATCH)
            batch = {"input_ids": tokens[part].long(), "index": index[part]}
            took = timed(lambda: step(student, optimizer, ways[name], batch))  # noqa: B023
            if number:
                seconds[name].append(took)
    plain = seconds["without KL"]
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        print(f"| {name} | {statistics.median(own):.2f} s | {spread(ratios, 3)} |")


def step(
    student: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    loss_of: Objective,
    batch: dict[str, torch.Tensor],
) -> None:
    """Make one step."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(student, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def timed(run: Callable[[], None]) -> float:
    """Give a call's seconds of processor time, which what runs beside lengthens less."""
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
