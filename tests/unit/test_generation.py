"""Continuations: seeded, measured by hand, and shown."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from iskd.data.corpus import train_tokenizer
from iskd.evaluation.generation import (
    Sampling,
    continue_prompts,
    draw_prompts,
    generation_metrics,
    reading_page,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Once there was a fox <b>. The hen sat."] * 5, 280, 32)


@pytest.fixture(scope="module")
def models(tokenizer: PreTrainedTokenizerFast) -> list[GPT2LMHeadModel]:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
    config = GPT2Config(vocab_size=len(tokenizer), eos_token_id=0, **shape)
    return [GPT2LMHeadModel(config) for _ in range(2)]


@pytest.fixture
def prompts() -> torch.Tensor:
    return torch.randint(1, 250, (3, 6), generator=torch.Generator().manual_seed(2))


def write(
    models: list[GPT2LMHeadModel], tokenizer: Any, prompts: torch.Tensor, **changes: Any
) -> list[dict[str, Any]]:
    sampling = {"new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "seed": 7} | changes
    model, teacher = models
    return continue_prompts(model, teacher, tokenizer, prompts, Sampling(**sampling))


def test_a_seed_gives_the_same_continuations_whatever_was_drawn_before(
    models: list[GPT2LMHeadModel], tokenizer: Any, prompts: torch.Tensor
) -> None:
    first = write(models, tokenizer, prompts)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert write(models, tokenizer, prompts) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert write(models, tokenizer, prompts, seed=8) != first
    # A text's end is a token like any other.
    assert {len(sample["tokens"]) for sample in first} == {9}


def test_greedy_continuations_and_their_loss_by_hand(
    models: list[GPT2LMHeadModel], tokenizer: Any, prompts: torch.Tensor
) -> None:
    model, teacher = models
    samples = write(models, tokenizer, prompts, temperature=0)
    for sample, prompt in zip(samples, prompts, strict=True):
        ids = prompt.tolist()
        with torch.no_grad():
            for _ in range(9):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            expected = teacher(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert sample["tokens"] == ids[6:]
        losses = [-float(expected[i - 1, ids[i]]) for i in range(6, 15)]
        assert sample["teacher_loss"] == pytest.approx(sum(losses) / 9, rel=1e-5)
        assert sample["prompt"] == tokenizer.decode(prompt)


def test_a_narrow_nucleus_is_greedy(
    models: list[GPT2LMHeadModel], tokenizer: Any, prompts: torch.Tensor
) -> None:
    greedy = write(models, tokenizer, prompts, temperature=0)
    assert write(models, tokenizer, prompts, top_p=1e-9) == greedy


def test_distinct_n_by_hand() -> None:
    samples = [{"tokens": [1, 2, 1, 2], "teacher_loss": 2.0}]
    samples += [{"tokens": [1, 2, 3, 4], "teacher_loss": 3.0}]
    found = generation_metrics(samples)
    # Pairs: 12 21 12, 12 23 34: four of six; triples: 121 212, 123 234: all four.
    assert found["distinct_1"].value == 4 / 8
    assert found["distinct_2"].value == 4 / 6
    assert found["distinct_3"].value == 1
    assert found["teacher_loss"].value == 2.5
    assert (found["distinct_2"].stderr, found["distinct_2"].n) == (None, 6)


def test_prompts_are_beginnings_drawn_by_seed() -> None:
    sequences = torch.arange(60).reshape(10, 6)
    drawn = draw_prompts(sequences, 4, 3, 1)
    assert drawn.shape == (4, 3)
    assert {int(row[0]) % 6 for row in drawn} == {0}
    assert not torch.equal(drawn, draw_prompts(sequences, 4, 3, 2))
    assert len(draw_prompts(sequences, 99, 3, 1)) == 10


def test_a_page_shows_text_and_not_markup() -> None:
    sample = {"prompt": "a <b>\n", "continuation": "{{ x }} \x00&", "teacher_loss": 1.234}
    page = reading_page([sample], "T")
    assert "a &lt;b&gt; ⏎ " in page
    assert "&amp;" in page
    assert "\x00" not in page
    assert "1.23 nats/token" in page
