"""A compressed model as its teacher's draft: what is counted, and that the text stays the same."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.errors import UserError
from iskd.evaluation.metric import Metric
from iskd.models import CompactSizes, NarrowSizes
from iskd.models.folder import save_model
from iskd.serving.draft_table import as_table
from iskd.serving.speculation import (
    Drafted,
    Drafting,
    check_rollback,
    encode,
    measure_drafts,
)
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

TEXTS = ["Once there was a fox.", "The hen sat on the fox's red hat. The end."] * 5
PROMPTS = [torch.tensor([[3, 14, 15, 9]]), torch.tensor([[2, 7, 18]])]
# Two inner layers, a block without attention: the cache has slots beyond and slots that stay empty.
SIZES = CompactSizes(width=8, heads=1, blocks=2, mlp=12, positions=POSITIONS)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=270, length=POSITIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_the_teachers_own(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family).double()
    share = SHARE.get(family, 1)
    narrow = {1: NarrowSizes(share, 9), 2: NarrowSizes(0, 5)}
    if family in ("mistral", "qwen2"):
        # Their last block has a window.
        uneven = tiny_model(family, compact={0: SIZES}, narrow=narrow)
        with pytest.raises(UserError, match="m: block 2 has no attention and its window slides"):
            check_rollback(uneven.config, "m")
        del narrow[2]
    draft = tiny_model(family, compact={0: SIZES}, narrow=narrow).double()
    check_rollback(draft.config, "m")
    (found,) = measure_drafts(teacher, draft, PROMPTS, Drafting(20, (3,)), name="small")
    assert (found.same, found.prompts, found.margin) == (2, 2, None)
    assert 0 <= found.acceptance < 1
    assert 1 <= found.per_pass < 4


def test_a_draft_that_is_the_teacher_is_always_right(tiny_model: MakeModel) -> None:
    teacher, twin = (tiny_model("llama").double() for _ in range(2))
    found = measure_drafts(teacher, twin, PROMPTS, Drafting(21, (2, 6)), name="twin")
    assert [each.acceptance for each in found] == [1.0, 1.0]
    # 21 tokens are seven passes of two drafted and one own token, or three of six and one.
    assert [each.per_pass for each in found] == [3.0, 7.0]


def test_a_draft_that_is_never_right_costs_a_pass_for_each_token(tiny_model: MakeModel) -> None:
    teacher, draft = tiny_model("llama").double(), tiny_model("llama").double()
    # Its most likely token is another one's less likely, for whatever it reads.
    with torch.no_grad():
        draft.get_submodule("model.norm").weight.mul_(-1)
    (found,) = measure_drafts(teacher, draft, PROMPTS, Drafting(10, (3,)), name="contrary")
    assert (found.acceptance, found.per_pass, found.same) == (0.0, 1.0, 2)


def test_the_models_are_left_as_they_were(tiny_model: MakeModel) -> None:
    teacher, draft = tiny_model("gpt2"), tiny_model("gpt2", seed=1)
    given = GenerationConfig(repetition_penalty=5.0, do_sample=True, eos_token_id=list(range(60)))
    teacher.generation_config = draft.generation_config = given
    (found,) = measure_drafts(teacher, draft, PROMPTS, Drafting(8, (2,)), name="other")
    assert found.per_pass <= 3
    assert teacher.generation_config is draft.generation_config is given
    assert given.num_assistant_tokens is None
    assert not teacher._forward_pre_hooks


def test_a_different_text_is_told_with_its_margin(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that another shape of the computation changes, far beyond rounding."""
    teacher = tiny_model("llama").double()
    head = teacher.get_output_embeddings()
    honest = head.forward
    monkeypatch.setattr(
        head, "forward", lambda hidden: honest(hidden if hidden.shape[1] < 3 else -hidden)
    )
    (found,) = measure_drafts(
        teacher, tiny_model("llama").double(), PROMPTS, Drafting(12, (4,)), name="x"
    )
    assert found.same < found.prompts
    assert found.margin is not None
    assert found.margin > 0


def test_prompts_are_checked(tokenizer: PreTrainedTokenizerFast) -> None:
    found = encode(["The fox", "  ", "The hen"], tokenizer, room=9, where="here")
    assert [tokenizer.decode(ids[0]) for ids in found] == ["The fox", "The hen"]
    with pytest.raises(UserError, match=r"file: prompt 2 has \d+ tokens and there is room for 3"):
        encode(["The", "a fox and a hen and a hat"], tokenizer, room=3, where="file")
    with pytest.raises(UserError, match="file: there is no prompt in it"):
        encode(["", " "], tokenizer, room=3, where="file")


def test_the_table_says_which_draft_is_the_fastest_and_that_none_is() -> None:
    def drafted(model: str, count: int, ratio: float) -> Drafted:
        speed = Metric(10.0, None, 2, 9.0, 11.0)
        ratios = Metric(ratio, None, 2, ratio - 0.1, ratio + 0.1)
        return Drafted(model, 1000, count, 0.5, 2.0, speed, speed, speed, ratios, 1, 2, 0.00002)

    table = as_table([drafted("a", 4, 1.2), drafted("b", 2, 1.4)])
    assert "| b | 1,000 | 2 | 50.0% | 2.00 | 10.0 | 10.0 | 10.0 | 1.40 (1.30 to 1.50) |" in table
    assert "1 of 2, logits apart by 2e-05" in table
    assert table.endswith("fastest: b with 2 tokens at a time, 1.40 times the teacher alone\n")
    assert "no draft makes the teacher faster; the best is a" in as_table([drafted("a", 4, 0.7)])


@pytest.fixture
def folders(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> tuple[Path, list[Path]]:
    def saved(model: PreTrainedModel, name: str) -> Path:
        save_model(model, tokenizer, tmp_path / name)
        return tmp_path / name

    size = {"vocab_size": len(tokenizer)}
    teacher = saved(tiny_model("llama", **size), "teacher")
    one = saved(tiny_model("llama", narrow={1: NarrowSizes(2, 9)}, **size), "chain/step_01")
    two = saved(tiny_model("llama", narrow={1: NarrowSizes(0, 0)}, **size), "chain/step_02")
    return teacher, [one, two]


def test_a_chain_is_compared_in_one_call(
    folders: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, chain = folders
    file = tmp_path / "prompts.txt"
    file.write_text("The fox\n\nThe hen sat\n")
    call = ["speculate", str(teacher), *map(str, chain), "--prompts", str(file)]
    assert main([*call, "--new-tokens", "8", "--draft-tokens", "2", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["model"], each["draft_tokens"]) for each in found] == [
        *(("step_01", 2), ("step_01", 3)),
        *(("step_02", 2), ("step_02", 3)),
    ]
    assert all(each["prompts"] == 2 for each in found)
    assert found[0]["parameters"] > found[2]["parameters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["{teacher}/typo", "{model}"], "typo/config.json is not there"),
        (["{teacher}", "{other}"], "has other tokens than the teacher, so it cannot draft for it"),
        (["{teacher}", "{model}", "--prompts", "{teacher}/typo"], "typo: No such file"),
        (["{teacher}", "{model}", "--prompts", "{teacher}/model.safetensors"], "no text in UTF-8"),
        (["{teacher}", "{model}", "--new-tokens", "47"], "shorten it, or write fewer"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    change: list[str],
    message: str,
    *,
    folders: tuple[Path, list[Path]],
    tmp_path: Path,
    tiny_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = train_tokenizer(TEXTS, vocabulary=280, length=POSITIONS)
    save_model(tiny_model("llama", vocab_size=len(other)), other, tmp_path / "other")
    names = {"teacher": folders[0], "model": folders[1][0], "other": tmp_path / "other"}
    assert main(["speculate", *(part.format(**names) for part in change)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
