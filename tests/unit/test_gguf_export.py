"""Models whose blocks differ as GGUF files: keys, tensors, refusals; greedy text by llama.cpp."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import iskd.serving.commands
from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.data.gguf_header import read_header
from iskd.errors import UserError
from iskd.models import CompactSizes, NarrowSizes
from iskd.models.folder import load_model, save_model
from iskd.serving.gguf_export import export_gguf, gguf_layout, in_pairs, round_matrices
from iskd.serving.gguf_tokenizer import splitting_rules
from tests.unit.conftest import FAMILIES, POSITIONS, MakeModel

TEXTS = ["The hen saw the fox by the old red barn.", "A fox may wait for a hen."] * 20
KIN = ("llama", "mistral", "qwen2", "qwen3")
# Fewer heads, no attention, no block, no MLP.
PARTS = {
    1: NarrowSizes(4, 17),
    2: NarrowSizes(0, 40),
    3: NarrowSizes(0, 0),
    4: NarrowSizes(2, 0),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=300, length=POSITIONS)


def parts(tiny_model: MakeModel, tokenizer: Any, family: str = "llama") -> PreTrainedModel:
    return tiny_model(family, blocks=5, narrow=PARTS, vocab_size=len(tokenizer) + 3)


def read(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return values, tensors


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_each_block_has_its_sizes(
    family: str, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = parts(tiny_model, tokenizer, family)
    layout = export_gguf(model, tokenizer, tmp_path / "a.gguf", kind="f32", where="m")
    assert layout.architecture == "deci"
    assert layout.blocks == (0, 1, 2, 4)
    values, tensors = read(tmp_path / "a.gguf")
    assert values["general.architecture"] == "deci"
    assert values["deci.block_count"] == 4
    assert values["deci.attention.head_count"] == [8, 4, 0, 2]
    assert values["deci.attention.head_count_kv"] == [4, 2, 0, 1]
    whole = model.config.intermediate_size
    assert values["deci.feed_forward_length"] == [whole, 17, 40, 32]
    assert values["deci.attention.key_length"] == values["deci.rope.dimension_count"] == 4
    assert tensors["blk.1.attn_q.weight"].shape == (16, 32)
    assert tensors["blk.1.attn_k.weight"].shape == (8, 32)
    assert not any(name.startswith("blk.2.attn") for name in tensors)
    assert not tensors["blk.3.ffn_down.weight"].any()
    held = model.state_dict()
    assert np.array_equal(tensors["blk.2.ffn_up.weight"], held["model.layers.2.mlp.up_proj.weight"])
    assert np.array_equal(
        tensors["blk.3.attn_output.weight"], held["model.layers.4.self_attn.o_proj.weight"]
    )
    assert ("blk.1.attn_q.bias" in tensors) == (family == "qwen2")


def test_rows_that_are_rotated_together_lie_side_by_side() -> None:
    rows = np.arange(12.0)[:, None]
    assert in_pairs(rows, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert in_pairs(rows[:, 0], 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_blocks_that_are_alike_are_the_familys_own(
    kind: str, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """transformers reads the file back: the weights and the order of rows are right."""
    left_out = tiny_model(
        "llama", blocks=3, narrow={1: NarrowSizes(0, 0)}, vocab_size=len(tokenizer)
    )
    layout = export_gguf(left_out, tokenizer, tmp_path / "a.gguf", kind=kind, where="m")
    assert (layout.architecture, layout.blocks) == ("llama", (0, 2))
    header = read_header(tmp_path / "a.gguf")
    assert (header.architecture, header.blocks) == ("llama", 2)
    matrices, vectors = 2 * 7 + 2 - left_out.config.tie_word_embeddings, 2 * 2 + 1
    wanted = {kind.upper(): matrices, "F32": vectors}
    assert header.types == (wanted if kind != "f32" else {"F32": matrices + vectors})
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    ).eval()
    ids = torch.arange(1, 30)[None]
    round_matrices(left_out, kind)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, left_out(ids).logits, atol=1e-3, rtol=1e-3)


def test_a_window_that_slides_bounds_the_context(tiny_model: MakeModel) -> None:
    assert gguf_layout(tiny_model("mistral").config, "m").context == 6
    assert gguf_layout(tiny_model("llama").config, "m").context == POSITIONS
    whole = tiny_model("qwen2", layer_types=["full_attention"] * 3)
    assert gguf_layout(whole.config, "m").context == POSITIONS


def test_the_tokenizer_goes_along(
    tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = "{{ messages }}"
    export_gguf(parts(tiny_model, tokenizer), tokenizer, tmp_path / "a.gguf", kind="f16", where="m")
    values, _ = read(tmp_path / "a.gguf")
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert len(values["tokenizer.ggml.tokens"]) == len(tokenizer) + 3
    assert values["tokenizer.ggml.tokens"][-1] == f"[PAD{len(tokenizer) + 2}]"
    assert values["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    control = gguf.TokenType.CONTROL
    assert values["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == control


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN = {**BYTES, "use_regex": False}
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ([BYTES], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTES], "smollm"),
        ([{"type": "Split", "behavior": "Isolated", "pattern": {"Regex": QWEN}}, PLAIN], "qwen2"),
        ([{"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "x"}}, PLAIN], None),
        ([{**BYTES, "add_prefix_space": True}], None),
        ([{"type": "Metaspace"}], None),
        ([{"type": "Digits", "individual_digits": False}, BYTES], None),
    ],
)
def test_how_a_tokenizer_splits_has_a_name(parts: list[dict[str, Any]], name: str | None) -> None:
    assert splitting_rules({"pre_tokenizer": {"pretokenizers": parts}}) == name
    if len(parts) == 1:
        assert splitting_rules({"pre_tokenizer": parts[0]}) == name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_format_lacks_is_said(family: str, tiny_model: MakeModel) -> None:
    compact = {1: CompactSizes(8, 1, 1, 8, POSITIONS)}
    config = tiny_model(family, compact=compact).config
    wanted = "block 1 is compact, a backbone" if family in KIN else f"a {family} model; GGUF files"
    with pytest.raises(UserError, match=wanted):
        gguf_layout(config, "here")


def test_qwen3_has_one_size_only(tiny_model: MakeModel) -> None:
    uneven = tiny_model("qwen3", narrow={1: NarrowSizes(2, 9)}).config
    with pytest.raises(UserError, match="no norms on queries and keys"):
        gguf_layout(uneven, "here")
    even = tiny_model("qwen3", narrow=dict.fromkeys(range(3), NarrowSizes(2, 9))).config
    assert gguf_layout(even, "here").architecture == "qwen3"


def test_rotary_angles_that_are_not_written_are_refused(
    tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=rope, vocab_size=len(tokenizer))
    with pytest.raises(UserError, match="rotary angles of type dynamic are not written to GGUF"):
        export_gguf(model, tokenizer, tmp_path / "a.gguf", kind="f32", where="here")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(parts(tiny_model, tokenizer).bfloat16(), tokenizer, tmp_path / "model")
    monkeypatch.setattr(iskd.serving.commands, "_is_there", lambda package: False)
    assert main(["export-gguf", str(tmp_path / "model"), str(tmp_path / "a.gguf")]) == 0
    written, compared = capsys.readouterr().out.splitlines()
    assert "4 blocks as llama.cpp's architecture deci, bf16, texts of up to 48 tokens" in written
    assert compared.startswith("not compared: llama-cpp-python is not installed")
    assert main(["export-gguf", str(tmp_path / "model"), str(tmp_path / "no" / "a.gguf")]) == 2
    assert "name <name>.gguf in a folder that is there" in capsys.readouterr().err


@pytest.mark.parametrize("family", KIN)
@pytest.mark.parametrize("shape", ["parts", "whole"])
def test_llama_cpp_gives_the_same_text(
    family: str,
    shape: str,
    *,
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    if (family, shape) == ("qwen3", "parts"):
        pytest.skip("llama.cpp has no such architecture")
    given: dict[str, Any] = {"vocab_size": len(tokenizer), "blocks": 5}
    if family.startswith("qwen"):
        given["layer_types"] = ["full_attention"] * 5
    if family == "mistral":
        given["sliding_window"] = None
    if shape == "parts":
        given["narrow"] = PARTS
    model = tiny_model(family, **given)
    save_model(model, tokenizer, tmp_path / "model")
    assert main(["export-gguf", str(tmp_path / "model"), str(tmp_path / "a.gguf")]) == 0
    assert "3 of 3 greedy texts" in capsys.readouterr().out
    from llama_cpp import Llama

    reader = Llama(str(tmp_path / "a.gguf"), vocab_only=True, verbose=False)
    for text in ("The hen's 23 foxes, waiting.", "a  b\n\nc"):
        found = reader.tokenize(text.encode(), add_bos=False, special=False)
        assert found == tokenizer(text)["input_ids"]
    assert load_model(tmp_path / "model").config.num_hidden_layers == 5
