"""Texts packed into one sequence get the scores that each of them gets alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, XLNetConfig

from iskd.evaluation.shared_prefix import Text, batches_of, can_share, groups_of, pack, score
from iskd.models import CompactSizes, NarrowSizes
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, VOCABULARY, MakeModel

COMPACT = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)
# Few different tokens, so that texts begin alike.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[Text], list[int]]:
    """Draw texts about items, as lm-eval would hand them on."""
    found: list[Text] = []
    items: list[int] = []
    for item in range(draw(st.integers(1, 4))):
        context = draw(TOKENS)
        for _ in range(draw(st.integers(1, 4))):
            own = context if draw(st.booleans()) else draw(TOKENS)
            found.append(Text((*own, *draw(TOKENS)), len(own)))
            items.append(item)
    return found, items


@torch.no_grad()
def alone(model: PreTrainedModel, text: Text) -> tuple[float, bool]:
    """Score one text by the definition."""
    logits = model(torch.tensor([text.tokens[:-1]])).logits[0, text.context - 1 :]
    targets = torch.tensor(text.tokens[text.context :])
    values = logits.double().log_softmax(-1)[range(len(targets)), targets]
    return float(values.sum()), bool((logits.argmax(-1) == targets).all())


@settings(max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    kinds=st.lists(st.sampled_from(["full", "narrow", "compact"]), min_size=3, max_size=3),
    kernel=st.sampled_from(["sdpa", "eager"]),
    drawn=texts(),
    size=st.integers(1, 4),
)
def test_each_text_gets_what_it_gets_alone(
    *,
    family: str,
    kinds: list[str],
    kernel: str,
    drawn: tuple[list[Text], list[int]],
    size: int,
    tiny_model: MakeModel,
) -> None:
    narrow = NarrowSizes(heads=SHARE.get(family, 1), mlp=5)
    # A window that no text is longer than: `can_share` leaves out the others.
    windows = {"sliding_window": 12} if family in ("mistral", "qwen2", "qwen3") else {}
    model = tiny_model(
        family,
        **windows,
        compact={index: COMPACT for index, kind in enumerate(kinds) if kind == "compact"},
        narrow={index: narrow for index, kind in enumerate(kinds) if kind == "narrow"},
    )
    model.set_attn_implementation(kernel)
    given_texts, items = drawn
    assert can_share(model, longest=10)
    groups = groups_of(given_texts, items)
    packed = [pack([given_texts[place] for place in group]) for group in groups]
    for batch in batches_of(packed, 10 * size):
        scored = score(model, [packed[number] for number in batch])
        for number, found in zip(batch, scored, strict=True):
            for place, (log_likelihood, greedy) in zip(groups[number], found, strict=True):
                wanted, wanted_greedy = alone(model, given_texts[place])
                assert log_likelihood == pytest.approx(wanted, abs=1e-5)
                assert greedy == wanted_greedy


@pytest.mark.parametrize("logit", [0.0, math.nan])
def test_of_equally_likely_tokens_the_first_is_the_likeliest(
    logit: float, tiny_model: MakeModel
) -> None:
    model = tiny_model("gpt2")
    model.get_output_embeddings().weight.data.fill_(logit)
    texts = [Text((5, *tokens), 1) for tokens in ((0, 0), (0, 1), (1, 0), (2, 3))]
    (scored,) = score(model, [pack(texts)])
    assert [greedy for _, greedy in scored] == [alone(model, text)[1] for text in texts]
    assert [greedy for _, greedy in scored] == [True, False, False, False]


@given(drawn=texts())
def test_packing_loses_nothing_and_computes_no_more(
    drawn: tuple[list[Text], list[int]],
) -> None:
    given_texts, items = drawn
    groups = groups_of(given_texts, items)
    assert [place for group in groups for place in group] == list(range(len(given_texts)))
    packed = [pack([given_texts[place] for place in group]) for group in groups]
    for group, sequence in zip(groups, packed, strict=True):
        assert len({items[place] for place in group}) == 1
        rows = list(zip(sequence.tokens, sequence.positions, sequence.owners, strict=True))
        for number, place in enumerate(group):
            text = given_texts[place]
            seen = [(token, at) for token, at, owner in rows if owner in (-1, number)]
            assert seen == list(zip(text.read, range(len(text.read)), strict=True))
            targets = [
                (place, token) for place, token, owner in sequence.targets if owner == number
            ]
            assert [token for _, token in targets] == list(text.tokens[text.context :])
            assert [rows[at][1] for at, _ in targets] == list(
                range(text.context - 1, len(text.read))
            )
    computed = sum(len(sequence.tokens) for sequence in packed)
    assert computed <= sum(len(text.read) for text in given_texts)
    batches = batches_of(packed, 20)
    assert sorted(number for batch in batches for number in batch) == list(range(len(packed)))
    for batch in batches:
        longest = max(len(packed[number].tokens) for number in batch)
        assert len(batch) == 1 or len(batch) * longest <= 20


def test_options_of_a_cloze_are_one_sequence() -> None:
    story, question = list(range(100)), [1, 2, 3]
    options = [Text((*story, *question, 200 + n, 4, 5), len(story)) for n in range(10)]
    groups = groups_of([*options, *options], [1] * 10 + [2] * 10)
    assert groups == [list(range(10)), list(range(10, 20))]
    assert len(pack(options).tokens) == len(story) + len(question) + 10 * 2


def test_texts_that_only_begin_with_the_same_word_are_not_packed_to_their_harm() -> None:
    """Winogrande's two contexts are one item each; here the third would cost the others much."""
    one = [Text((7, *range(50), n), 51) for n in (60, 61)]
    other = Text((7, 90, 91), 2)
    assert groups_of([*one, other], [1, 1, 1]) == [[0, 1], [2]]


def test_who_may_not_share(tiny_model: MakeModel) -> None:
    published = replace(COMPACT, published=True)
    assert not can_share(tiny_model("gpt2", compact={1: published}), longest=4)
    mistral = tiny_model("mistral")
    mistral.config.sliding_window = 8
    assert can_share(mistral, longest=8)
    assert not can_share(mistral, longest=9)

    class Other(GPT2LMHeadModel):
        config_class: Any = GPT2Config

    config = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=VOCABULARY)
    model = Other(config)
    assert can_share(model, longest=4)
    model.config = XLNetConfig()
    assert not can_share(model, longest=4)
