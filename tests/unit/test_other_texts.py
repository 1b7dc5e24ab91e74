"""Texts beside the corpus: whose tokens a sequence holds, drawn texts, other words."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from iskd.data.corpus import (
    load_sequences,
    load_stories,
    save_sequences,
    story_sequences,
    token_sequences,
    train_tokenizer,
)
from iskd.data.sources import sources
from iskd.data.texts import draw_texts
from iskd.data.toyworld.elsewhere import other_stories
from iskd.errors import UserError
from iskd.evaluation.heldout import score_sequences, shared_vocabulary
from iskd.evaluation.losses import heldout_metrics
from tests.unit.test_heldout import model, sequences

__all__ = ["model", "sequences"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a b c d e f g h"] * 4, 260, 16)


def test_a_sequence_belongs_to_the_story_of_its_middle(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["abcdefghij", "k", "lmnopqrstuvw"]
    found, stories = story_sequences(texts, tokenizer, 4)
    ids = [[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in texts]
    owners = [story for story, tokens in enumerate(ids) for _ in tokens]
    assert stories.tolist() == [owners[i * 4 + 2] for i in range(len(found))]
    assert torch.equal(found, token_sequences(texts, tokenizer, 4))
    save_sequences(found, tmp_path / "with", stories)
    save_sequences(found, tmp_path / "without")
    assert torch.equal(load_sequences(tmp_path / "with"), found)
    kept = load_stories(tmp_path / "with")
    assert kept is not None
    assert torch.equal(kept, stories)
    assert load_stories(tmp_path / "without") is None


def test_texts_are_drawn_in_their_order_and_empty_ones_left_out() -> None:
    texts = [f"text {i}" if i % 2 else " \n" for i in range(40)]
    nonempty = [text for text in texts if text.strip()]
    assert draw_texts(texts, None, 1) == nonempty
    drawn = draw_texts(texts, 5, 1)
    assert drawn == sorted(drawn, key=nonempty.index)
    assert len(set(drawn)) == 5
    assert drawn != draw_texts(texts, 5, 2)
    with pytest.raises(UserError, match="at least 1"):
        draw_texts(texts, 0, 1)


def test_other_words_are_not_the_corpus_own() -> None:
    own, other = (other_stories(3, 20, other_words=flag) for flag in (False, True))
    assert len(own) == len(other) == 20
    words = [
        {w.strip(".,!?“”\"'").lower() for t in texts for w in t.split()} for texts in (own, other)
    ]
    assert any(name in words[1] for name in ("olaf", "ingrid", "sven", "astrid"))
    assert not words[0] & {"olaf", "ingrid", "laptop", "noodle"}
    assert other_stories(3, 20, other_words=True) == other


def test_a_model_is_its_own_teachers_equal(model, sequences) -> None:  # type: ignore[no-untyped-def]
    samples = score_sequences(
        model, sequences, batch_size=3, teacher=model, stories=[0, 0, 1, 1, 2, 3, 4]
    )
    assert {sample["kl"] for sample in samples} == {0.0}
    assert {sample["agreement"] for sample in samples} == {1.0}
    found = heldout_metrics(samples)
    assert (found["loss"].n, found["loss"].clusters) == (7, 5)


def test_distance_to_the_teacher_by_hand(model, sequences) -> None:  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(9)
    shape = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=44, **shape)).eval()
    assert shared_vocabulary(model, teacher) == 40
    samples = score_sequences(model.eval(), sequences, batch_size=4, teacher=teacher)
    for sample, sequence in zip(samples, sequences, strict=True):
        with torch.no_grad():
            p = teacher(sequence[None]).logits[0, :-1, :40].double().softmax(-1)
            q = model(sequence[None]).logits[0, :-1].double().softmax(-1)
        kl = (p * (p.log() - q.log())).sum(-1).mean()
        agree = (p.argmax(-1) == q.argmax(-1)).double().mean()
        assert sample["kl"] == pytest.approx(float(kl), rel=1e-4)
        assert sample["agreement"] == pytest.approx(float(agree))


def test_rows_of_one_passage_are_one_source() -> None:
    story = [f"Sentence number {i} ." for i in range(30)]
    cloze = [
        {"sentences": story[i : i + 10], "question": "Then XXXXX .", "answer": "x"}
        for i in (0, 3, 15)
    ]
    alone = {"sentences": ["Yes ."] * 3, "question": "No XXXXX .", "answer": "y"}
    hellaswag = [{"source_id": "video~1"}, {"source_id": "video~2"}, {"source_id": "video~1"}]
    found = sources([*cloze, alone, *hellaswag, {"passage": "P"}, {"passage": "P"}, {}])
    assert found[0] == found[1]
    # The third shares a run with nobody; it begins two sentences after the second one's end.
    assert len(set(found[:4])) == 3
    assert found[4:7] == ["video~1", "video~2", "video~1"]
    assert found[7] == found[8] != found[9]
