"""A small Llama as a GGUF file, written as llama.cpp's converter does."""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
)
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def small_llama(tokenizer: PreTrainedTokenizerFast, *, blocks: int = 2) -> LlamaForCausalLM:
    """Make a fresh Llama, 64 wide, with two heads to a key."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()


def write_gguf(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    kind: str = "Q4_1",
    template: str | None = TEMPLATE,
    architecture: str = "llama",
) -> dict[str, NDArray[np.float32]]:
    """Write a model with its tokenizer, all matrices quantised in one way.

    Returns:
        the weights that the file holds, under the names that the model has for them
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, template)
    held = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        data = weight.float().numpy()
        stored, heads = _stored_name(name), _heads(name, config)
        if data.ndim == 1:
            writer.add_tensor(stored, data)
            held[name] = data
            continue
        number = gguf.GGMLQuantizationType[kind]
        packed = quantize(_interleaved(data, heads) if heads else data, number)
        writer.add_tensor(stored, packed, raw_dtype=number)
        unpacked = dequantize(packed, number)
        held[name] = _halves(unpacked, heads) if heads else unpacked
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    import json

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if token in special else kinds.NORMAL for token, _ in vocabulary]
    )
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    )
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if template is not None:
        writer.add_chat_template(template)


def _stored_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _heads(name: str, config: LlamaConfig) -> int:
    """Give how many heads a projection has whose rows llama.cpp puts into another order."""
    if name.endswith("q_proj.weight"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.endswith("k_proj.weight") else 0


def _interleaved(data: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Order the rows of each head as llama.cpp rotates them: in pairs."""
    split = data.reshape(heads, 2, len(data) // heads // 2, -1)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(data.shape))


def _halves(data: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo that."""
    split = data.reshape(heads, len(data) // heads // 2, 2, -1)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(data.shape))
