"""A byte-level BPE tokenizer in the keys that llama.cpp reads of a GGUF file.

llama.cpp splits text before merging by rules of its own that a file only names
(``tokenizer.ggml.pre``). Which name belongs to a tokenizer is told here by how it splits; where it
splits in a way that is not known here, somebody has to say the name.
"""

import json
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from iskd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")
_SPLITS = {_LLAMA_3: "llama-bpe", _QWEN_2: "qwen2"}


def add_tokenizer(
    writer: GGUFWriter,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
    *,
    pre: str | None,
    where: str,
) -> None:
    """Write a tokenizer's tokens, merges, special tokens and chat template.

    Args:
        writer: of the file.
        tokenizer: byte-level BPE in its fast form.
        vocabulary: rows of the model's embedding; those beyond the tokens are filled with names.
        pre: the name of llama.cpp's splitting rules; None to tell it by the tokenizer.
        where: the model's folder, for messages.

    Raises:
        UserError: another kind of tokenizer, or one whose splitting rules are not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    model = described.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"{where}: its tokenizer is not byte-level BPE, the one kind that is written to GGUF "
            "here; convert the file with llama.cpp's convert_hf_to_gguf.py --vocab-only and use "
            "that vocabulary"
        )
    found = pre or splitting_rules(described)
    if found is None:
        raise UserError(
            f"{where}: its tokenizer splits text in a way that is not known here; name llama.cpp's "
            "rules for it with --pre (the names stand in llama.cpp's src/llama-vocab.cpp)"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found)
    tokens, kinds = _tokens(described, tokenizer.get_vocab(), vocabulary)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([_merge(pair) for pair in model["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(first == tokenizer.bos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": n, "template": t} for n, t in template.items()])
    elif template:
        writer.add_chat_template(template)


def splitting_rules(described: dict[str, Any]) -> str | None:
    """Give llama.cpp's name for how a tokenizer splits text, None where it is not known.

    Args:
        described: the tokenizer as ``tokenizer.json`` holds it.
    """
    if (described.get("normalizer") or {}).get("type", "NFC") != "NFC":
        return None
    splitter = described.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    if any(part.get("add_prefix_space") for part in parts):
        return None
    *first, last = parts
    if last.get("type") != "ByteLevel" or len(first) > 1:
        return None
    # Where the last part splits, too, it does so by GPT-2's expression.
    splits = last.get("use_regex", True)
    part = first[0] if first else {"type": None}
    if part["type"] == "Split" and part.get("behavior") == "Isolated" and not splits:
        pattern: Any = part["pattern"]
        return _SPLITS.get(pattern.get("Regex", ""))
    if part["type"] == "Digits" and part.get("individual_digits") and splits:
        return "smollm"
    return "gpt-2" if splits and not first else None


def _tokens(
    described: dict[str, Any], known: dict[str, int], vocabulary: int
) -> tuple[list[str], list[TokenType]]:
    added = {entry["id"]: entry for entry in described.get("added_tokens", [])}
    names = {number: token for token, number in known.items()}
    tokens, kinds = [], []
    for number in range(vocabulary):
        if number not in names:
            tokens.append(f"[PAD{number}]")
            kinds.append(TokenType.UNUSED)
            continue
        tokens.append(names[number])
        if number not in added:
            kinds.append(TokenType.NORMAL)
        elif added[number]["special"]:
            kinds.append(TokenType.CONTROL)
        else:
            kinds.append(TokenType.USER_DEFINED)
    return tokens, kinds


def _merge(pair: str | list[str]) -> str:
    """Write a merge as llama.cpp splits it: at its one blank."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", "\u0120") for part in pair)
