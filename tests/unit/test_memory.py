"""The memory plan of a training, against what torch's profiler sees allocated."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from iskd.cli import main
from iskd.evaluation.efficiency import _allocations
from iskd.models.substitution import compact_config
from iskd.training import chunked, memory
from iskd.training.chunked import LARGE_VOCABULARY
from iskd.training.memory import MemoryPlan, largest_micro_batch, plan_memory
from iskd.training.objectives import next_token_loss

GPT2 = GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=400, n_positions=128)
LLAMA = LlamaConfig(
    num_hidden_layers=3,
    hidden_size=64,
    intermediate_size=160,
    num_attention_heads=4,
    vocab_size=400,
    max_position_embeddings=128,
)


def allocated(config: PretrainedConfig, sequences: int, length: int, precision: str) -> int:
    """Bytes that are still held when the forward pass of a real model has ended."""
    model = AutoModelForCausalLM.from_config(config).train()
    batch = {"input_ids": torch.zeros(sequences, length, dtype=torch.long)}
    wide = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with _allocations() as changes, wide:
        loss = next_token_loss(model, batch)
    assert loss.requires_grad
    return sum(changes)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [GPT2, LLAMA, compact_config(GPT2, [1])])
def test_what_is_kept_is_what_a_real_model_keeps(config: PretrainedConfig, precision: str) -> None:
    plan = plan_memory(config, 8, 100, precision=precision)
    kept = plan.activations - 4 * 8 * 100 * config.vocab_size  # the logits' gradient comes later
    assert 0.97 < kept / allocated(config, 8, 100, precision) < 1.10


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_a_large_vocabulary_the_plan_is_what_a_real_step_takes(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plan is made for a GPU, which works on a whole chunk at once; here on a small one.
    monkeypatch.setattr(memory, "ROWS", 256)
    monkeypatch.setattr(chunked, "ROWS_ON_CPU", 256)
    monkeypatch.setattr(chunked, "PIECE", 256 * LARGE_VOCABULARY)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=LARGE_VOCABULARY)
    model = AutoModelForCausalLM.from_config(config).train()
    batch = {"input_ids": torch.zeros(40, 100, dtype=torch.long)}
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with _allocations() as changes, half:
        next_token_loss(model, batch)
    held, most = 0, 0
    for change in changes:
        held += change
        most = max(most, held)
    plan = plan_memory(config, 40, 100, precision=precision).activations
    logits = 4 * 40 * 100 * LARGE_VOCABULARY
    print(plan, most, logits)
    assert plan < 0.6 * logits
    assert 0.8 < plan / most < 1.25


def test_weights_gradients_and_moments_follow_from_the_parameters() -> None:
    plan = plan_memory(GPT2, 1, 8)
    count = AutoModelForCausalLM.from_config(GPT2).num_parameters()
    assert (plan.weights, plan.gradients, plan.optimizer) == (4 * count, 4 * count, 8 * count)
    assert plan.teacher == 0
    parts = plan.weights + plan.gradients + plan.optimizer + plan.activations
    assert plan.total == parts


def test_checkpointing_keeps_less_and_a_teacher_takes_more() -> None:
    plain = plan_memory(GPT2, 8, 100)
    assert plan_memory(GPT2, 8, 100, checkpointing=True).activations < 0.7 * plain.activations
    with_teacher = plan_memory(GPT2, 8, 100, teacher=GPT2, teacher_precision="bfloat16")
    logits = 8 * 100 * 400
    assert with_teacher.teacher == plain.weights // 2 + 2 * logits + 4 * logits


@pytest.mark.parametrize("vocabulary", [400, LARGE_VOCABULARY], ids=["plain", "chunked"])
def test_a_recorded_teacher_takes_less(vocabulary: int) -> None:
    config = GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=vocabulary, n_positions=128)
    plan = partial(plan_memory, config, 8, 100, teacher=config, teacher_precision="bfloat16")
    asked, exact = plan(), plan(teacher_cache="exact")
    blocks = asked.weights - 4 * 64 * vocabulary  # and positions
    # Hidden states are read either way where losses are worked out in chunks.
    states = 0 if vocabulary == LARGE_VOCABULARY else 2 * 8 * 100 * 64
    assert asked.teacher - exact.teacher == blocks // 2 - states
    sampled = plan(teacher_cache="sampled").teacher
    assert sampled == 800 * (12 * 8 + 4) + 8 * 800 * vocabulary  # less than a chunk


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(0, 10**8))
def test_the_largest_micro_batch_fits_and_the_next_does_not(
    base: int, each: int, room: int
) -> None:
    def plan(sequences: int) -> MemoryPlan:
        return MemoryPlan(base, 0, 0, each * sequences, 0)

    found = largest_micro_batch(plan, room)
    assert found == 0 or plan(found).total <= room
    assert plan(found + 1).total > room


def test_plans_grow_by_the_same_amount_with_each_sequence() -> None:
    plan = partial(plan_memory, GPT2, length=64)
    totals = [plan(n).total for n in (2, 3, 6)]
    assert totals[2] - totals[0] == 4 * (totals[1] - totals[0])


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT2.save_pretrained(tmp_path)
    assert main(["memory", str(tmp_path), "--length", "64", "--cards", "0.005", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| micro_batch on 0.005 GB | micro_batch on 1 GB |")
    assert len(lines) == 6
    fits = [line.split(" | ")[-1].removesuffix(" |") for line in lines[2:]]
    assert int(fits[1]) > int(fits[0]) > 1
    assert lines[2].split(" | ")[-2] in ("none", "1", "2")


def test_the_commands_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", str(tmp_path), "--length", "8"]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}: no config.json here; name a Hugging Face model's folder\n"
    )
    for broken in ("{", '{"model_type": "no such thing"}'):
        (tmp_path / "config.json").write_text(broken)
        assert main(["memory", str(tmp_path), "--length", "8"]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"{tmp_path}: config.json cannot be read")
        assert message.count("\n") == 1
    GPT2.save_pretrained(tmp_path)
    assert main(["memory", str(tmp_path), "--length", "129"]) == 2
    assert capsys.readouterr().err == f"--length 129: {tmp_path} takes 1 to 128 tokens\n"
