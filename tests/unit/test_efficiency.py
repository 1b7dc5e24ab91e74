"""Speed and memory: what is called when, and what is made of it. No time is claimed here."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from iskd.data.corpus import train_tokenizer
from iskd.evaluation import efficiency
from iskd.evaluation.efficiency import Load, measure, summarise
from iskd.serving.drafting import drafting_records
from iskd.serving.speculation import PROMPTS

LOAD = Load((1, 2), 6, 3, repeats=3, warmup=1, seed=1)


def model(layers: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=layers, n_head=2)
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return list(measure(model(1), model(3), LOAD))


def test_both_are_measured_in_turn(records: list[dict[str, Any]]) -> None:
    own = [r for r in records if r["batch_size"] == 2 and r["phase"] == "decode"]
    turns = [(r["repeat"], r["who"]) for r in own]
    # Whoever was second comes first in the next repeat.
    assert turns == [
        *((0, "teacher"), (0, "model")),
        *((1, "model"), (1, "teacher")),
        *((2, "teacher"), (2, "model")),
    ]


def test_tokens_are_those_read_and_written(records: list[dict[str, Any]]) -> None:
    counts = {(r["batch_size"], r["phase"]): r.get("tokens") for r in records}
    assert (counts[1, "prefill"], counts[1, "decode"]) == (6, 3)
    assert (counts[2, "prefill"], counts[2, "decode"]) == (12, 6)
    assert all(r["seconds"] > 0 for r in records if r["phase"] != "memory")


def test_memory_is_the_weights_and_what_is_held_beyond(records: list[dict[str, Any]]) -> None:
    held = {(r["who"], r["batch_size"]): r["bytes"] for r in records if r["phase"] == "memory"}
    for who, layers in (("model", 1), ("teacher", 3)):
        weights = sum(p.nbytes for p in model(layers).parameters())
        # The cache of the last step: keys and values of every layer, 16 floats for each token.
        for size in (1, 2):
            assert held[who, size] >= weights + layers * 2 * size * 9 * 16 * 4
        assert held[who, 2] > held[who, 1]
    assert held["teacher", 1] > held["model", 1]


def test_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    one = model(1)
    forward = one.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(one, "forward", watched)
    list(efficiency._timed(one, torch.zeros(2, 6, dtype=torch.long), 3))
    assert seen == [6, 1, 1, 1]


def record(who: str, repeat: int, seconds: float, phase: str = "decode") -> dict[str, Any]:
    return {"who": who, "repeat": repeat, "seconds": seconds, "phase": phase} | {
        "batch_size": 4,
        "tokens": 100,
    }


def test_ratios_come_from_pairs_by_hand() -> None:
    times = {"teacher": (1.0, 2.0, 4.0), "model": (2.0, 2.0, 5.0)}
    records = [record(who, i, s) for who, seconds in times.items() for i, s in enumerate(seconds)]
    records += [{"who": w, "batch_size": 4, "phase": "memory", "bytes": b} for w, b in PAIR]
    found = summarise(records)
    speed = found["model"]["decode_b4"]
    assert (speed.value, speed.low, speed.high, speed.n) == (50, 20, 50, 3)
    assert found["teacher"]["decode_b4"].value == 50
    # 1/2, 2/2, 4/5: the median of the pairs, not the pair of the medians, which would be 1.
    ratio = found["model"]["decode_b4_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == (0.8, 0.5, 1.0)
    assert found["model"]["memory_b4_ratio"].value == 0.75
    assert "decode_b4_ratio" not in found["teacher"]
    assert "prefill_b4" not in found["model"]


PAIR = (("model", 300), ("teacher", 400))


def test_the_profiler_sees_what_is_allocated() -> None:
    def grow() -> Iterator[None]:
        held = torch.zeros(1000, dtype=torch.float32)
        yield
        del held

    with efficiency._allocations() as seen:
        for _ in grow():
            pass
    assert 4000 in seen
    assert -4000 in seen


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(list(PROMPTS), vocabulary=300, length=128)


def test_a_draft_is_one_record_more_and_two_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    shape = {"n_positions": 128, "n_embd": 16, "n_head": 2, "vocab_size": len(tokenizer)}
    draft, teacher = (GPT2LMHeadModel(GPT2Config(**shape, n_layer=n)).eval() for n in (1, 3))
    (row,) = drafting_records(copy.deepcopy(teacher), teacher, tokenizer, LOAD, 2)
    found = summarise([row])["model"]
    assert found["draft_acceptance"].value == 1.0
    assert found["draft_acceptance"].n == len(PROMPTS)
    ratio = found["draft_ratio"]
    assert ratio.low is not None
    assert ratio.high is not None
    assert 0 < ratio.low <= ratio.value <= ratio.high
    assert list(summarise([row])["teacher"]) == []
    (row,) = drafting_records(draft, teacher, tokenizer, LOAD, 2)
    assert row["same"] == len(PROMPTS)


def test_a_model_without_room_for_the_prompts_is_no_draft(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    small = model(1)  # of 16 positions
    with caplog.at_level("WARNING"):
        assert drafting_records(small, small, tokenizer, LOAD, 2) == []
    assert "not measured as a draft: the built-in prompts: prompt " in caplog.text
