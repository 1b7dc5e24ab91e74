"""Models whose blocks are all alike as the library's own class: same logits, no code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from iskd.baselines.blocks import keep_blocks
from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.errors import UserError
from iskd.models import CompactSizes, NarrowSizes, family_of
from iskd.models.folder import save_model
from iskd.serving.plain_export import plain_model
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

IDS = torch.arange(1, 40)[None]
GONE = NarrowSizes(0, 0)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_were_left_out_leave_a_plain_model(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    # Of two types of attention the first block of each stays.
    model = tiny_model(family, blocks=4, narrow={2: GONE})
    plain = plain_model(model, "m")
    assert type(plain).__module__.startswith("transformers.models.")
    assert type(plain.config) is family_of(model.config).config
    assert plain.config.num_hidden_layers == 3
    assert torch.equal(logits_of(plain), logits_of(model))
    plain.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    text = (tmp_path / "config.json").read_text()
    assert "auto_map" not in text
    assert "iskd" not in text
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(plain)
    assert torch.equal(logits_of(read), logits_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_drop_writes_such_a_folder_itself(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    kept = keep_blocks(tiny_model(family, blocks=4), [0, 1, 3])
    kept.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", SHARE)
def test_blocks_that_were_narrowed_alike_are_a_plain_model_of_other_sizes(
    family: str, tiny_model: MakeModel
) -> None:
    narrow = dict.fromkeys(range(3), NarrowSizes(2 * SHARE[family], 17))
    model = tiny_model(family, narrow=narrow)
    plain = plain_model(model, "m")
    assert plain.config.num_attention_heads == 2 * SHARE[family]
    assert plain.config.intermediate_size == 17
    assert type(plain.config) is family_of(model.config).config
    torch.testing.assert_close(logits_of(plain), logits_of(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "blocks", "message"),
    [
        ("llama", {"narrow": {1: NarrowSizes(2, 9)}}, "block 1 has 2 heads and 9 neurons and "),
        ("llama", {"compact": {1: CompactSizes(8, 1, 1, 8, 48)}}, "block 1 is compact"),
        ("gpt2", {"narrow": dict.fromkeys(range(3), NarrowSizes(2, 9))}, "gpt2 has no such blocks"),
        (
            "gpt2",
            {"narrow": {1: GONE}, "scale_attn_by_inverse_layer_idx": True},
            "scaled by the number of the block",
        ),
    ],
)
def test_what_the_librarys_class_lacks_is_said(
    family: str, blocks: dict[str, Any], message: str, tiny_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=message):
        plain_model(tiny_model(family, **blocks), "m")


def test_the_command_writes_a_folder(
    tiny_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(
        ["The fox.", "A hen."], vocabulary=270, length=POSITIONS
    )
    model = tiny_model("llama", narrow={1: GONE}, vocab_size=len(tokenizer)).bfloat16()
    save_model(model, tokenizer, tmp_path / "model")
    assert main(["export-plain", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert "a LlamaForCausalLM of 2 blocks, without code of its own" in capsys.readouterr().out
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.dtype == torch.bfloat16
    given = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(read), logits_of(given))
    save_model(
        tiny_model("llama", narrow={1: NarrowSizes(2, 9)}, vocab_size=len(tokenizer)),
        tokenizer,
        tmp_path / "uneven",
    )
    assert main(["export-plain", str(tmp_path / "uneven"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
