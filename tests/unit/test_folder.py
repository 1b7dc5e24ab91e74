"""Models as folders: saved in one file, loaded again, and fetched ones put in order."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from iskd.data.corpus import token_sequences, train_tokenizer
from iskd.errors import UserError
from iskd.models import CompactSizes, parameter_count, replace_block
from iskd.models.folder import (
    adopt_model,
    adopt_reference,
    checkpoint_bytes,
    load_config,
    load_model,
    load_to_train,
    load_tokenizer,
    published_dtype,
    save_model,
)
from iskd.provenance.tensors import MASTER, weight_files
from iskd.settings import LearningRates, TrainingSettings
from iskd.training.pretrain import pretrain
from tests.unit.conftest import FAMILIES, POSITIONS, MakeModel

IDS = torch.arange(1, 20)[None]
TEXTS = ["Once there was a fox.", "The hen sat on the fox's red hat. The end."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=270, length=POSITIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_as_it_was(
    family: str, tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes = CompactSizes(8, 1, 2, 8, POSITIONS)
    model, _ = replace_block(tiny_model(family), 1, sizes, "paper", seed=1)
    save_model(model, tokenizer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()
    read = load_model(tmp_path)
    assert not read.training
    device = read.device
    with torch.no_grad():
        found = read(IDS.to(device)).logits.cpu()
    torch.testing.assert_close(found, model(IDS).logits, atol=1e-4, rtol=1e-4)
    assert load_tokenizer(tmp_path)("fox")["input_ids"] == tokenizer("fox")["input_ids"]
    assert parameter_count(load_config(tmp_path)) == model.num_parameters()


def test_a_model_is_loaded_in_the_requested_precision(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model("gpt2").to(torch.float16), tokenizer, tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_fetched_model_ends_with_one_file_of_weights(
    family: str,
    sharded: bool,
    tmp_path: Path,
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is sharded
    assert adopt_model(tmp_path, family=family, blocks=3) == model.num_parameters()
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert not (tmp_path / ".cache").exists()
    assert (tmp_path / "tokenizer.json").is_file()
    read = load_model(tmp_path).cpu()
    for name, value in model.state_dict().items():
        assert torch.equal(value, read.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_keeps_its_teachers_number_format(
    family: str, tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    teacher, smaller = tmp_path / "teacher", tmp_path / "smaller"
    save_model(tiny_model(family).to(torch.bfloat16), tokenizer, teacher)
    assert published_dtype(teacher) == torch.bfloat16
    model = load_model(teacher).cpu()
    assert model.dtype == torch.float32
    model, _ = replace_block(model, 1, CompactSizes(8, 1, 2, 8, POSITIONS), "paper", seed=1)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, smaller, like=teacher)
    assert checkpoint_bytes(smaller) < checkpoint_bytes(teacher)
    assert load_config(smaller).dtype == torch.bfloat16
    for name, value in load_model(smaller).state_dict().items():
        assert torch.equal(value.cpu(), trained[name].bfloat16().float()), name


def test_another_precision_may_be_requested(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model("llama"), tokenizer, tmp_path / "teacher")
    for precision in ("float16", "bfloat16", "float32"):
        out = tmp_path / precision
        model = tiny_model("llama")
        save_model(model, tokenizer, out, like=tmp_path / "teacher", precision=precision)
        assert published_dtype(out) == getattr(torch, precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_step_trains_on_weights_that_were_not_rounded(
    family: str, tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path, precision="bfloat16", keep_master=True)
    assert published_dtype(tmp_path) == torch.bfloat16
    for name, value in load_to_train(tmp_path).state_dict().items():
        assert torch.equal(value.cpu(), trained[name]), name
    # What is rounded to nothing needs no second copy.
    save_model(tiny_model(family), tokenizer, tmp_path / "plain", keep_master=True)
    assert not (tmp_path / "plain" / MASTER).exists()


def test_master_weights_of_another_model_are_refused(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model("llama"), tokenizer, tmp_path, precision="bfloat16")
    save_file({"a": torch.zeros(1)}, tmp_path / MASTER)
    with pytest.raises(RuntimeError, match="not the weights of the model beside it"):
        load_to_train(tmp_path)


def test_template_and_generation_config_come_along(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Even a config that the library would not write: a temperature, and nothing is drawn."""
    teacher, smaller = tmp_path / "teacher", tmp_path / "smaller"
    tokenizer.save_pretrained(teacher)
    own = load_tokenizer(teacher)
    own.chat_template = "{{ messages[0]['content'] }}"
    save_model(tiny_model("llama"), own, teacher)
    given = '{"do_sample": false, "temperature": 0.6, "eos_token_id": [0, 1]}'
    (teacher / "generation_config.json").write_text(given)
    save_model(tiny_model("llama"), load_tokenizer(teacher), smaller, like=teacher)
    assert load_tokenizer(smaller).chat_template == own.chat_template
    assert (smaller / "generation_config.json").read_text() == given
    assert load_model(smaller).generation_config.eos_token_id == [0, 1]


def test_large_weights_are_sharded_and_read_again(
    tmp_path: Path,
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iskd.models.folder.SHARD_BYTES", 20_000)
    model = tiny_model("llama")
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path)
    assert len(weight_files(tmp_path)) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert adopt_model(tmp_path, family="llama", blocks=3) == model.num_parameters()
    assert len(weight_files(tmp_path)) > 1
    assert checkpoint_bytes(tmp_path) > 4 * model.num_parameters()
    for name, value in load_model(tmp_path).state_dict().items():
        assert torch.equal(value.cpu(), trained[name]), name


def test_a_fetched_model_must_be_what_the_config_says(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model("gpt2"), tokenizer, tmp_path)
    with pytest.raises(UserError, match="write family: gpt2"):
        adopt_model(tmp_path, family="phi", blocks=3)
    with pytest.raises(UserError, match="write blocks: 3"):
        adopt_model(tmp_path, family="gpt2", blocks=4)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_fetched_model_has_weights_that_are_numbers(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast, value: float
) -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_parameter("transformer.h.1.ln_1.weight")[3] = value
    save_model(model, tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"are damaged: transformer\.h\.1\.ln_1\.weight holds"):
        adopt_model(tmp_path, family="gpt2", blocks=3)


def test_a_fetched_model_needs_an_end_token(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tiny_model("gpt2"), tokenizer, tmp_path)
    bare = load_tokenizer(tmp_path)
    bare.eos_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end token"):
        adopt_model(tmp_path, family="gpt2", blocks=3)


def test_a_reference_row_has_its_teachers_tokenizer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tiny_model: MakeModel
) -> None:
    """Any architecture will do, but losses per token compare only where tokens are the same."""
    teacher, own, foreign = tmp_path / "teacher", tmp_path / "own", tmp_path / "foreign"
    tokenizer.save_pretrained(teacher)
    model = tiny_model("llama")
    save_model(model, tokenizer, own)
    assert adopt_reference(own, teacher=teacher) == model.num_parameters()
    assert (own / "model.safetensors").exists()
    save_model(model, train_tokenizer(["Other words."] * 9, 262, 16), foreign)
    with pytest.raises(UserError, match="tokenizer is not its teacher's"):
        adopt_reference(foreign, teacher=teacher)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_is_trained_from_its_seed(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    sequences = token_sequences(TEXTS, tokenizer, 8)
    architecture = {
        "blocks": 2,
        "width": 16,
        "heads": 2,
        "mlp": 20,
        "positions": 16,
        "vocabulary": 270,
        "dropout": 0.1,
        "initializer_range": 0.03,
    }
    settings = TrainingSettings(
        epochs=4,
        batch_size=4,
        learning_rate=LearningRates(compact=1e-2, rest=1e-2),
        optimizer="adamw",
        weight_decay=0.01,
        beta2=0.95,
        schedule="cosine",
        warmup=0.05,
        clip=1.0,
        precision="float32",
    )
    found = []
    for before, seed in ((1, 4), (2, 4), (2, 5)):
        torch.manual_seed(before)
        found.append(
            pretrain(sequences, tokenizer, architecture, settings, family=family, seed=seed)
        )
    (model, history), (again, _), (other, _) = found
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings) == (len(tokenizer), 16)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert history[-1]["loss"] < history[0]["loss"]
    states = [m.state_dict() for m in (model, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
