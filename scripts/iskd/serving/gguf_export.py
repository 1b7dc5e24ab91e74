"""Compressed models of Llama's kin as GGUF files, with sizes of their own for each block.

llama.cpp's loader takes ``head_count``, ``head_count_kv`` and ``feed_forward_length`` as arrays
with an entry a block, but most of its architectures build every block by the first entry. The one
that reads all entries and has blocks without attention is ``deci`` (Llama-Nemotron,
src/models/deci.cpp), whose blocks are Llama's otherwise. A model whose blocks are all alike is
written as its own family.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType
from gguf.quants import quantize
from numpy.typing import NDArray

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import ChangedBlocks, NarrowSizes
from iskd.serving.gguf_tokenizer import add_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from iskd.serving.agreement import Logits

FORMATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""Number formats that matrices are written in; vectors are float32, as llama.cpp wants them."""

PER_BLOCK = "deci"
"""llama.cpp's architecture whose blocks have sizes of their own."""

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# These rotate neighbouring numbers of a head together; transformers rotates its two halves.
_IN_PAIRS = ("llama", PER_BLOCK)
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}
# An MLP of zeros stands where there is none: deci.cpp skips the attention of a block whose
# feed_forward_length is 0. A multiple of 32 can be quantised.
_ZEROS = 32
_NAMES = {
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Layout:
    """How a model's blocks are written.

    Attributes:
        architecture: llama.cpp's name of it.
        blocks: the model's block that each block of the file is; a block that was left out is not
            written.
        sizes: heads and MLP neurons of each block of the file.
        context: positions that the file promises.
    """

    architecture: str
    blocks: tuple[int, ...]
    sizes: tuple[NarrowSizes, ...]
    context: int


def gguf_layout(config: "PreTrainedConfig", where: str) -> Layout:
    """Find how a model fits into the format.

    Args:
        config: the model's.
        where: its folder, for messages.

    Raises:
        UserError: what the format or llama.cpp lacks for this model.
    """
    family = family_of(config).name
    if family not in _ARCHITECTURES:
        raise UserError(
            f"{where}: a {family} model; GGUF files are written of {', '.join(_ARCHITECTURES)}"
        )
    changed = ChangedBlocks.of(config)
    if changed.compact:
        raise UserError(
            f"{where}: block {min(changed.compact)} is compact, a backbone of another width inside "
            "two projections, and no architecture of llama.cpp has such a block; only models whose "
            "blocks were narrowed or left out can be written (recipes narrow and parts, layer drop)"
        )
    if config.hidden_act != "silu":
        raise UserError(f"{where}: its MLPs use {config.hidden_act}; llama.cpp computes silu there")
    whole = NarrowSizes(config.num_attention_heads, config.intermediate_size)
    sizes = {index: changed.narrow.get(index, whole) for index in range(config.num_hidden_layers)}
    kept = {index: size for index, size in sizes.items() if size.heads or size.mlp}
    alike = len(set(kept.values())) == 1
    if not alike and family == "qwen3":
        raise UserError(
            f"{where}: its blocks have different sizes, and the one architecture of llama.cpp with "
            f"sizes of their own ({PER_BLOCK}) has no norms on queries and keys, which Qwen3 has"
        )
    return Layout(
        architecture=_ARCHITECTURES[family] if alike else PER_BLOCK,
        blocks=tuple(kept),
        sizes=tuple(kept.values()),
        context=_context(config),
    )


def _context(config: "PreTrainedConfig") -> int:
    """Give the positions up to which a window that slides hides nothing."""
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    slides = window is not None and (types is None or "sliding_attention" in types)
    positions = int(config.max_position_embeddings)
    return min(positions, int(window)) if slides and window is not None else positions


def export_gguf(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    file: Path,
    *,
    kind: str,
    where: str,
    pre: str | None = None,
) -> Layout:
    """Write a model with its tokenizer into a GGUF file.

    Args:
        model: narrow, whole or with blocks left out; left as it is.
        tokenizer: its tokenizer.
        file: where to; it is there whole or not at all.
        kind: number format of the matrices, a key of ``FORMATS``.
        where: the model's folder, for messages.
        pre: the name of llama.cpp's rules for splitting text; None to tell it by the tokenizer.

    Returns:
        how the blocks were written

    Raises:
        UserError: what the format or llama.cpp lacks for this model or tokenizer.
    """
    config = model.config
    layout = gguf_layout(config, where)
    factors = _rope_factors(model, layout, where)
    part = file.with_name(f".{file.name}.part")
    writer = GGUFWriter(part, layout.architecture)
    try:
        _add_sizes(writer, config, layout)
        writer.add_name(Path(where).name)
        writer.add_file_type(_FILE_TYPES[kind])
        add_tokenizer(writer, tokenizer, config.vocab_size, pre=pre, where=where)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for name, data in _tensors(model, layout):
            if data.ndim == 1 or kind == "f32":
                writer.add_tensor(name, np.ascontiguousarray(data))
                continue
            number = GGMLQuantizationType[kind.upper()]
            writer.add_tensor(name, quantize(np.ascontiguousarray(data), number), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return layout


def _add_sizes(writer: GGUFWriter, config: "PreTrainedConfig", layout: Layout) -> None:
    share = family_of(config).adapter.sharing_heads(config)
    heads = [size.heads for size in layout.sizes]
    neurons = [size.mlp or _ZEROS for size in layout.sizes]
    shared = [count // share for count in heads]
    single = layout.architecture != PER_BLOCK
    writer.add_context_length(layout.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layout.blocks))
    writer.add_head_count(heads[0] if single else heads)
    writer.add_head_count_kv(shared[0] if single else shared)
    writer.add_feed_forward_length(neurons[0] if single else neurons)
    width = head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if config.rope_parameters.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_parameters["factor"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def head_width(config: "PreTrainedConfig") -> int:
    """Give the numbers in a head of a model of Llama's kin."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _rope_factors(
    model: "PreTrainedModel", layout: Layout, where: str
) -> NDArray[np.float32] | None:
    """Give what Llama 3's rotary angles are divided by, (head width / 2)."""
    rope = model.config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind in ("default", "linear"):
        return None
    if kind != "llama3" or layout.architecture not in _IN_PAIRS:
        raise UserError(
            f"{where}: rotary angles of type {kind} are not written to GGUF for the architecture "
            f"{layout.architecture}; default and linear ones are, and llama3 for Llama"
        )
    scaled = model.get_submodule("model.rotary_emb").inv_freq.double().cpu()
    places = torch.arange(0, head_width(model.config), 2, dtype=torch.float64)
    plain = float(rope["rope_theta"]) ** -(places / head_width(model.config))
    factors: NDArray[np.float32] = (plain / scaled).float().numpy()
    return factors


def _tensors(model: "PreTrainedModel", layout: Layout) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Give a model's tensors under llama.cpp's names, in float32."""
    held = model.state_dict()
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if not model.config.tie_word_embeddings:
        outer["lm_head.weight"] = "output.weight"
    for name, stored in outer.items():
        yield stored, _numbers(held[name])
    for place, (index, sizes) in enumerate(zip(layout.blocks, layout.sizes, strict=True)):
        start = f"model.layers.{index}."
        for name, weight in held.items():
            if not name.startswith(start):
                continue
            inner, part = name.removeprefix(start).rsplit(".", 1)
            data = _numbers(weight)
            if layout.architecture in _IN_PAIRS and inner in (
                "self_attn.q_proj",
                "self_attn.k_proj",
            ):
                data = in_pairs(data, head_width(model.config))
            yield f"blk.{place}.{_NAMES[inner]}.{part}", data
        if not sizes.mlp:
            yield from _no_mlp(f"blk.{place}.", model.config.hidden_size)


def _no_mlp(start: str, width: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield f"{start}ffn_norm.weight", np.ones(width, np.float32)
    for name, shape in {
        **{"gate": (_ZEROS, width), "up": (_ZEROS, width)},
        "down": (width, _ZEROS),
    }.items():
        yield f"{start}ffn_{name}.weight", np.zeros(shape, np.float32)


@torch.no_grad()
def round_matrices(model: "PreTrainedModel", kind: str) -> None:
    """Round a model's matrices as a file of number format ``kind`` holds them."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.to(FORMATS[kind]))


def _numbers(weight: torch.Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return numbers


def in_pairs(data: NDArray[Any], width: int) -> NDArray[Any]:
    """Put the rows of each head, ``width`` of them, into the order in which pairs are rotated.

    Args:
        data: weights (heads * width, inputs) or biases (heads * width) in the order of
            transformers, where row i is rotated with row i + width / 2.
        width: rows of a head.

    Returns:
        the same rows, those that are rotated together side by side
    """
    split = data.reshape(-1, 2, width // 2, *data.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(data.shape))


def gguf_logits(file: Path, *, room: int) -> "Logits":
    """Give what asks llama.cpp for the logits after a text, with a KV cache in float32.

    Args:
        file: the GGUF file.
        room: tokens of the longest text.
    """
    from llama_cpp import GGML_TYPE_F32, Llama

    model = Llama(
        model_path=str(file),
        n_ctx=room,
        n_gpu_layers=0,
        n_threads=1,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )

    def logits(text: list[int]) -> NDArray[np.float32]:
        known = model.input_ids[: model.n_tokens].tolist()
        if text[: len(known)] != known or len(text) == len(known):
            model.reset()
            known = []
        model.eval(text[len(known) :])
        count = model.n_vocab()
        found = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(count,))
        return np.array(found, np.float32)

    return logits
