"""From stories to token sequences, and to what each step trains on."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from iskd.data.corpus import (
    END_OF_TEXT,
    load_sequences,
    mixed_sequences,
    save_sequences,
    step_sequences,
    token_sequences,
    train_tokenizer,
)
from iskd.errors import UserError

TEXTS = [
    "Once there was a fox. The fox had a red hat.",
    "Zoë met the fox. “Hello!” said Zoë 🦊. Привет, 世界!",
    "The hen sat on the red hat.\nThe end.",
] * 4
STORY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=300, length=32)


@settings(max_examples=60)
@given(text=STORY)
def test_any_text_survives_the_tokenizer(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    if END_OF_TEXT not in text:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_has_the_configured_size_and_one_end_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT
    assert tokenizer.model_max_length == 32
    # Learning merges must have paid off.
    assert len(tokenizer("the fox")["input_ids"]) < len("the fox")


def test_training_a_tokenizer_twice_gives_the_same_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    again = train_tokenizer(TEXTS, vocabulary=300, length=32)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_tokenizer_survives_its_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert read(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (read.eos_token_id, read.model_max_length) == (tokenizer.eos_token_id, 32)
    text = "a , b ! do n't \u00a0x  y"
    assert read.decode(read(text)["input_ids"]) == text
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "tokenizer.json").read_bytes() == (
        tmp_path / "again" / "tokenizer.json"
    ).read_bytes()
    # No place of this machine goes into what is published.
    assert str(tmp_path) not in (tmp_path / "again" / "tokenizer_config.json").read_text()


@settings(max_examples=60)
@given(texts=st.lists(STORY, min_size=1, max_size=6), length=st.integers(2, 40))
def test_sequences_hold_the_stories_in_order_each_with_its_end(
    texts: list[str], length: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    end = tokenizer.eos_token_id
    stream = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    ]
    if len(stream) < length:
        with pytest.raises(UserError, match="less than one sequence"):
            token_sequences(texts, tokenizer, length)
        return
    sequences = token_sequences(texts, tokenizer, length)
    assert sequences.dtype == torch.int32
    assert sequences.shape == (len(stream) // length, length)
    assert sequences.flatten().tolist() == stream[: len(stream) // length * length]


def test_sequences_decode_to_the_stories(tokenizer: PreTrainedTokenizerFast) -> None:
    sequences = token_sequences(TEXTS, tokenizer, 8)
    text = tokenizer.decode(sequences.flatten().tolist())
    assert "".join(f"{t}{END_OF_TEXT}" for t in TEXTS).startswith(text)


def test_stories_longer_than_the_model_are_not_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    story = "The fox ran. " * 50
    sequences = token_sequences([story], tokenizer, 8)
    assert story.startswith(tokenizer.decode(sequences.flatten().tolist()))
    assert sequences.numel() > 10 * 8


def test_too_little_text_says_what_to_change(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"give 2 tokens.*corpus\.block_length"):
        token_sequences(["a"], tokenizer, 8)
    with pytest.raises(UserError, match="give 0 tokens"):
        token_sequences([], tokenizer, 8)


def test_a_tokenizer_without_an_end_is_a_users_mistake() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300, length=32)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        token_sequences(TEXTS, tokenizer, 8)


def test_sequences_survive_their_file(tmp_path: Path) -> None:
    sequences = torch.arange(60, dtype=torch.int32).reshape(10, 6)
    # A view with other strides, as a slice of a larger tensor gives.
    for number, tensor in enumerate((sequences, sequences[::2, 1:4])):
        save_sequences(tensor, tmp_path / f"{number}.safetensors")
        read = load_sequences(tmp_path / f"{number}.safetensors")
        assert read.dtype == torch.int32
        assert torch.equal(read, tensor)


ROWS = torch.arange(10, dtype=torch.int32)[:, None].expand(10, 4)


@given(count=st.integers(1, 25), steps=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_baseline_takes_what_its_reference_took_step_by_step(
    count: int, steps: int, seed: int
) -> None:
    parts = [step_sequences(ROWS, count, seed=seed, first=s, last=s) for s in range(1, steps + 1)]
    at_once = step_sequences(ROWS, count, seed=seed, first=1, last=steps)
    assert torch.equal(torch.cat(parts), at_once)
    assert all(part.shape == (count, 4) for part in parts)
    taken = at_once[:, 0].tolist()
    # Nothing comes again before everything has come once.
    assert len(set(taken[:10])) == min(10, len(taken))
    assert all(taken[i] == taken[i + 10] for i in range(len(taken) - 10))


def test_without_a_count_each_step_takes_everything() -> None:
    for step in (1, 3):
        taken = step_sequences(ROWS, None, seed=1, first=step, last=step)
        assert sorted(taken[:, 0].tolist()) == list(range(10))


def test_the_seed_decides_on_the_order_of_sequences() -> None:
    one, again, other = (
        step_sequences(ROWS, 10, seed=s, first=1, last=1)[:, 0].tolist() for s in (1, 1, 2)
    )
    assert one == again != other


def test_a_mix_has_its_shares_everywhere_and_takes_none_twice() -> None:
    parts = [torch.arange(600).reshape(300, 2), torch.arange(1000, 1100).reshape(50, 2)]
    mixed = mixed_sequences([(parts[0], 0.8), (parts[1], 0.2)])
    assert len(mixed) == 250
    assert len(mixed.unique(dim=0)) == 250
    other = mixed[:, 0] >= 1000
    assert all(int(part.sum()) == 2 for part in other.split(10))
    assert mixed[~other].flatten().tolist() == list(range(400))


def test_a_share_too_small_for_one_sequence_is_refused() -> None:
    with pytest.raises(UserError, match="without a sequence"):
        mixed_sequences([(torch.zeros(3, 2), 0.95), (torch.zeros(1, 2), 0.05)])
