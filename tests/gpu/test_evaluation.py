"""Evaluation on a GPU gives the scores of a processor, and efficiency measures the device."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iskd.evaluation.efficiency import Load, measure, summarise
from iskd.evaluation.shared_prefix import Text, pack, score

CONFIG = GPT2Config(n_layer=3, n_embd=128, n_head=4, vocab_size=900, n_positions=128)


def test_packed_texts_score_as_on_a_processor() -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(CONFIG).eval()
    generator = torch.Generator().manual_seed(2)
    shared = torch.randint(900, (40,), generator=generator).tolist()
    texts = [
        Text((*shared, *torch.randint(900, (n,), generator=generator).tolist()), len(shared))
        for n in (3, 7, 12)
    ]
    batch = [pack(texts)]
    (slow,), (fast,) = score(model, batch), score(model.cuda(), batch)
    for (one, likeliest), (other, found) in zip(slow, fast, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
        assert likeliest == found


def test_efficiency_measures_the_devices_memory() -> None:
    teacher, model = (GPT2LMHeadModel(CONFIG).cuda() for _ in range(2))
    load = Load((1, 4), prompt_tokens=16, new_tokens=4, repeats=3, warmup=1, seed=1)
    found = summarise(list(measure(model, teacher, load)))["model"]
    assert found["memory_b4"].value > found["memory_b1"].value > 4 * model.num_parameters()
    assert found["memory_b4_ratio"].value == pytest.approx(1.0, abs=0.05)
