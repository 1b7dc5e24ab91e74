"""A model's folder is looked at while a study is planned: what is wrong is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from iskd.data.model_folder import check_model_folder, files_of_folder
from iskd.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that holds all that is looked at."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    whole_folder(folder)
    return folder


def whole_folder(folder: Path) -> None:
    """Write what a plan looks at: no model that could be loaded."""
    write(folder / "config.json", {"model_type": "llama", "num_hidden_layers": 2})
    write(folder / "tokenizer.json", {})
    save_file({"a": torch.zeros(100)}, folder / "model.safetensors")


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        save_file({name: torch.zeros(50)}, folder / name)
    index = {"weight_map": {name: name for name in names}}
    write(folder / "model.safetensors.index.json", index)


def test_a_whole_folder_passes(model: Path) -> None:
    check_model_folder(model, "f: key")
    in_shards(model)
    check_model_folder(model, "f: key")
    # They were looked at: without one of them the folder is not whole.
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.* is not there"):
        check_model_folder(model, "f: key")


def test_older_tokenizers_are_tokenizers(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    for names in (("vocab.json", "merges.txt"), ("tokenizer.model",), ("spiece.model",)):
        for name in names:
            (model / name).touch()
        check_model_folder(model, "f: key")
        for name in names:
            (model / name).unlink()
        with pytest.raises(UserError, match="tokenizer"):
            check_model_folder(model, "f: key")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def half_a_tokenizer(folder: Path) -> None:
    no_tokenizer(folder)
    (folder / "vocab.json").touch()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def missing_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncated_shard(folder: Path) -> None:
    in_shards(folder)
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def shards_without_index(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def index_that_leads_out(folder: Path) -> None:
    in_shards(folder)
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}})


def gptq(folder: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    write(folder / "config.json", {"model_type": "llama", "num_hidden_layers": 2, **quantised})


def awq(folder: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "awq"}}
    write(folder / "config.json", {"model_type": "llama", "num_hidden_layers": 2, **quantised})


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    write(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def gguf_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "my.Q4_K_M.gguf").write_bytes(b"GGUF")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter_with_a_config(folder: Path) -> None:
    write(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def blocks_that_are_missing(folder: Path) -> None:
    names = ("model.layers.0.mlp.weight", "model.layers.1.mlp.weight")
    save_file({name: torch.zeros(3) for name in names}, folder / "model.safetensors")
    write(folder / "config.json", {"model_type": "llama", "num_hidden_layers": 3})


def another_vocabulary(folder: Path) -> None:
    weights = {"model.embed_tokens.weight": torch.zeros(7, 2)}
    save_file(weights, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 5}
    write(folder / "config.json", config)


BAD: list[tuple[Callable[[Path], None], str]] = [
    (no_tokenizer, "has no tokenizer (tokenizer.json); save it there, too"),
    (half_a_tokenizer, "has no tokenizer"),
    (truncated, "model.safetensors is cut short: "),
    (empty_weights, "model.safetensors is no safetensors file"),
    (missing_shard, "model-00002-of-00002.safetensors is not there, though "),
    (truncated_shard, "model-00001-of-00002.safetensors is cut short: "),
    (shards_without_index, "model.safetensors.index.json is not there; save the model anew"),
    (index_that_leads_out, "does not tell its shards"),
    (gptq, "are quantised (gptq) and cannot be trained; name the model that they were made from"),
    (awq, "are quantised (awq)"),
    (adapter, "is an adapter (LoRA), not a model; merge it into its base model first (merge_and_"),
    (adapter_with_a_config, "is an adapter (LoRA), not a model"),
    (blocks_that_are_missing, "says 3 blocks, and the weights hold 2; save the model anew with"),
    (another_vocabulary, "a vocabulary of 5, and model.embed_tokens.weight holds 7; save the"),
    (gguf_alone, "holds a GGUF file and no config.json; add the key gguf: my.Q4_K_M.gguf"),
    (pickled, "has no weights in safetensors"),
]


@pytest.mark.parametrize(("spoil", "expected"), BAD, ids=lambda v: getattr(v, "__name__", ""))
def test_a_bad_folder_is_reported_in_one_line(
    model: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(model)
    with pytest.raises(UserError) as caught:
        check_model_folder(model, "my.yaml: teachers.model.folder")
    message = str(caught.value)
    assert message.startswith("my.yaml: teachers.model.folder: ")
    assert expected in message
    assert "\n" not in message


def test_templates_come_along_and_master_weights_do_not(model: Path) -> None:
    (model / "chat_template.jinja").touch()
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tools.jinja").touch()
    (model / "master.safetensors").touch()
    (model / "optimizer.pt").touch()
    assert files_of_folder(model, "") == [
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
