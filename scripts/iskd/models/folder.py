"""Models as folders on disk: ordinary Hugging Face folders in safetensors."""

import shutil
from pathlib import Path

import torch
from torch import distributed
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_logging

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.recipes import parameter_count

# Larger than any model: its weights stay in one file of a name known beforehand.
ONE_FILE = "1000TB"

library_logging.disable_progress_bar()
library_logging.set_verbosity_error()


def load_config(folder: Path) -> PreTrainedConfig:
    """Read a model's config from a local folder."""
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Read a model from a local folder, onto the GPU where there is one, ready to evaluate."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a local folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer into a folder: one file of weights, whatever their size.

    Of several processes that have trained it together only the first does.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
        return
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(folder)


def checkpoint_bytes(folder: Path) -> int:
    """Count the bytes that a model's weights take on disk."""
    return (folder / "model.safetensors").stat().st_size


def adopt_model(folder: Path, *, family: str, blocks: int) -> int:
    """Check a fetched model against its config section and settle its files' names.

    Weights in several shards become one file, and the tokenizer is written in its fast form, so
    that every teacher's folder holds the same files.

    Returns:
        its number of parameters

    Raises:
        UserError: another architecture or number of blocks than the config says.
    """
    config = load_config(folder)
    found = family_of(config).name
    if found != family:
        raise UserError(f"the model is of family {found}: write family: {found} for this teacher")
    if config.num_hidden_layers != blocks:
        raise UserError(
            f"the model has {config.num_hidden_layers} blocks: "
            f"write blocks: {config.num_hidden_layers} for this teacher"
        )
    if load_tokenizer(folder).eos_token_id is None:
        raise UserError(
            "the model's tokenizer has no end token (eos_token): set one, save model and tokenizer "
            "into a folder and name that (source: folder), or choose another model"
        )
    _settle_files(folder)
    return parameter_count(config)


def adopt_reference(folder: Path, *, teacher: Path) -> int:
    """Check a fetched model that is only evaluated, and settle its files' names.

    Returns:
        its number of parameters

    Raises:
        UserError: its tokenizer is not the teacher's, so that losses per token would differ by
            what a token is.
    """
    own, other = load_tokenizer(folder), load_tokenizer(teacher)
    if own.get_vocab() != other.get_vocab():
        raise UserError(
            "the model's tokenizer is not its teacher's, so their losses per token cannot be "
            "compared: choose a model with the teacher's tokenizer"
        )
    _settle_files(folder)
    return parameter_count(load_config(folder))


def _settle_files(folder: Path) -> None:
    """Put all weights into one file, and the tokenizer into its fast form."""
    if not (folder / "model.safetensors").exists():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True
        )
        for shard in folder.glob("*.safetensors*"):
            shard.unlink()
        model.save_pretrained(folder, max_shard_size=ONE_FILE)
    load_tokenizer(folder).save_pretrained(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
