"""A teacher in a GGUF file: its header is read while planning, its weights are unpacked once."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from iskd.data.corpus import train_tokenizer
from iskd.data.gguf_header import GgufError, read_header
from iskd.errors import UserError
from iskd.models.dequantised import dequantise
from iskd.models.folder import adopt_model, published_dtype
from tests.gguf_model import TEMPLATE, small_llama, write_gguf

TEXTS = ["The hen saw the fox by the old red barn.", "A fox may wait for a hen."] * 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=300, length=128)


@pytest.fixture(scope="module")
def file(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(small_llama(tokenizer), tokenizer, path)
    return path


def test_the_header_gives_architecture_blocks_and_types(file: Path) -> None:
    header = read_header(file)
    assert (header.architecture, header.blocks) == ("llama", 2)
    assert header.types == {"Q4_1": 15, "F32": 5}
    assert header.quantization == "Q4_1 (15 tensors), F32 (5 tensors)"


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q4_0", "F16", "BF16"])
def test_a_dequantised_model_has_the_files_weights(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(2)
    held = write_gguf(small_llama(tokenizer), tokenizer, tmp_path / "a.gguf", kind=kind)
    out = tmp_path / "out"
    out.mkdir()
    dequantise(tmp_path / "a.gguf", out, precision="float32")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            assert np.array_equal(weight.numpy(), held[name]), name


def test_an_ordinary_folder_comes_out(
    file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dequantise(file, tmp_path)
    assert adopt_model(tmp_path, family="llama", blocks=2) > 100_000
    assert published_dtype(tmp_path) == torch.bfloat16
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "quantization_config" not in config
    assert "gguf" not in config
    assert str(file.parent) not in config
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == TEMPLATE
    assert again.eos_token == tokenizer.eos_token
    assert again(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert (tmp_path / "generation_config.json").is_file()


def test_an_architecture_that_the_library_cannot_read_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_gguf(small_llama(tokenizer), tokenizer, tmp_path / "a.gguf", architecture="abacus")
    with pytest.raises(UserError, match="cannot read GGUF files of the architecture abacus"):
        dequantise(tmp_path / "a.gguf", tmp_path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_no_gguf_file(share: float, file: Path) -> None:
    content = file.read_bytes()
    # What is behind the place of the last tensor, here the final norm, is not read.
    length = round(share * (len(content) - 4 * 64 - 64))
    cut = file.with_name("cut.gguf")
    cut.write_bytes(content[:length])
    with pytest.raises(GgufError):
        read_header(cut)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(file: Path, content: bytes) -> None:
    path = file.with_name("any.gguf")
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    header = None
    with suppress(GgufError):
        header = read_header(path)
    # What is read has as many tensors as its first number says.
    count = int.from_bytes(content[:8], "little")
    assert header is None or sum(header.types.values()) == count
