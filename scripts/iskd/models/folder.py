"""Models as folders on disk: ordinary Hugging Face folders in safetensors."""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_logging

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.recipes import parameter_count
from iskd.provenance.tensors import MASTER, dominant_dtype, weight_files

# Weights beyond this are split into several files, as the hub recommends.
SHARD_BYTES = 5_000_000_000
_GENERATION = "generation_config.json"
# What a safetensors header calls the formats that a model can be published in.
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

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


def load_to_train(folder: Path) -> PreTrainedModel:
    """Read a model in float32: its master weights, where it was published in another format.

    Raises:
        RuntimeError: the master weights are those of another model.
    """
    model = load_model(folder)
    if (folder / MASTER).exists():
        kept = load_file(folder / MASTER)
        if kept.keys() != _stored(model).keys():
            raise RuntimeError(f"{folder / MASTER}: not the weights of the model beside it")
        model.load_state_dict(kept, strict=False)
    return model


def published_dtype(folder: Path) -> torch.dtype:
    """Give the number format that most of a model's weights have on disk.

    What nothing can be trained to (integers, 8-bit floats) and float64 count as float32.
    """
    return _DTYPES.get(dominant_dtype(weight_files(folder)), torch.float32)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    like: Path | None = None,
    precision: str | None = None,
    keep_master: bool = False,
) -> None:
    """Write model and tokenizer into a folder; weights beyond 5 GB become several files.

    Of several processes that have trained it together only the first does.

    Args:
        model: the model; it has the published number format afterwards.
        tokenizer: written beside it, its chat template too.
        folder: where to.
        like: the teacher's folder. Its generation config is taken over as it is, and its number
            format unless ``precision`` names another.
        precision: ``float32``, ``bfloat16`` or ``float16``; left out, the teacher's, or the
            model's own where there is no teacher.
        keep_master: write the unrounded weights beside the published ones, if these are rounded.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
        return
    dtype = getattr(torch, precision) if precision else model.dtype
    if like is not None and precision is None:
        dtype = published_dtype(like)
    if keep_master and dtype != torch.float32:
        save_file({n: t.contiguous() for n, t in _stored(model).items()}, folder / MASTER)
    model.to(dtype)
    given = like / _GENERATION if like is not None else None
    if given is not None and given.exists():
        # The library refuses to write a config that it would read, so the file itself is taken.
        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(folder)
    if given is not None and given.exists():
        shutil.copyfile(given, folder / _GENERATION)


def _stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Give a model's saved tensors; of tied ones, which have several names, only the first."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: named[name].detach() for name in model.state_dict() if name in named}


def checkpoint_bytes(folder: Path) -> int:
    """Count the bytes that a model's published weights take on disk."""
    return sum(file.stat().st_size for file in weight_files(folder))


def adopt_model(folder: Path, *, family: str, blocks: int) -> int:
    """Check a fetched model against its config section and settle its files' names.

    Weights in several shards become one file up to 5 GB, and the tokenizer is written in its fast
    form, so that every teacher's folder holds the same files.

    Returns:
        its number of parameters

    Raises:
        UserError: another architecture or number of blocks than the config says, or weights that
            are no finite numbers.
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
    _check_finite(folder)
    return parameter_count(config)


def _check_finite(folder: Path) -> None:
    """Check that all weights are numbers, before hours of training with them.

    Raises:
        UserError: some are not.
    """
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - this is no dictionary
                if not weights.get_tensor(name).isfinite().all():
                    raise UserError(
                        f"the model's weights are damaged: {name} holds infinite values or such "
                        "that are no numbers (NaN); fetch or save the model again"
                    )


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
    """Put weights of up to 5 GB into one file, and the tokenizer into its fast form."""
    if not (folder / "model.safetensors").exists() and checkpoint_bytes(folder) <= SHARD_BYTES:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True
        )
        for shard in folder.glob("*.safetensors*"):
            shard.unlink()
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    load_tokenizer(folder).save_pretrained(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
