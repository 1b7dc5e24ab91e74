"""The part of the command ``iskd`` that puts a smaller model to work."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iskd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Commands = Any
"""What argparse gives for subcommands; it has no public name for the class."""


def add_commands(commands: Commands) -> None:
    """Add the subcommands to the parser of ``iskd``; each sets ``run``."""
    draft = commands.add_parser(
        "speculate",
        help="does a compressed model make its teacher write faster, as its draft?",
        description="Continue prompts greedily by a teacher alone and with a compressed model as "
        "its draft (speculative decoding, batch 1): how much of the draft is accepted, tokens per "
        "second, and whether the text is the same. Exit code 0: measured; 2: it cannot be.",
    )
    draft.add_argument("teacher", type=Path, help="its Hugging Face folder")
    draft.add_argument(
        "model", type=Path, nargs="+", help="a compressed model's folder, or several to compare"
    )
    draft.add_argument(
        "--prompts", type=Path, metavar="FILE", help="text file with a prompt a line"
    )
    draft.add_argument(
        "--new-tokens", type=_positive, default=64, metavar="N", help="tokens after each prompt"
    )
    draft.add_argument(
        "--draft-tokens",
        type=_positive,
        nargs="+",
        default=[4],
        metavar="N",
        help="tokens that a draft writes at a time; each number is measured",
    )
    draft.add_argument(
        "--repeats", type=_positive, default=1, metavar="N", help="how often each prompt is taken"
    )
    draft.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of both models",
    )
    draft.add_argument("--json", action="store_true", help="print the results for machines")
    draft.set_defaults(run=_speculate)
    plain = commands.add_parser(
        "export-plain",
        help="write a model whose blocks are all alike as the library's own class",
        description="Write a model as transformers' own class, with no code in the folder, where "
        "the blocks that were not left out are whole or all narrowed alike. Exit code 0: written; "
        "2: its blocks differ.",
    )
    plain.add_argument("model", type=Path, help="its Hugging Face folder")
    plain.add_argument("folder", type=Path, help="where to write the model and its tokenizer")
    plain.set_defaults(run=_export_plain)
    gguf = commands.add_parser(
        "export-gguf",
        help="write a compressed model for llama.cpp, where its format can hold it",
        description="Write a model of Llama's kin whose blocks were narrowed or left out as a GGUF "
        "file with the sizes of each block, and compare it with the original where "
        "llama-cpp-python is installed. Exit code 0: written; 1: it gives other texts; 2: it "
        "cannot be written.",
    )
    gguf.add_argument("model", type=Path, help="its Hugging Face folder")
    gguf.add_argument("file", type=Path, help="the file to write, <name>.gguf")
    gguf.add_argument(
        "--type",
        choices=("f32", "f16", "bf16"),
        help="number format of the matrices; left out, the model's own",
    )
    gguf.add_argument(
        "--pre",
        metavar="NAME",
        help="llama.cpp's name for how the tokenizer splits text, where it is not known here",
    )
    gguf.set_defaults(run=_export_gguf)
    onnx = commands.add_parser(
        "export-onnx",
        help="write a model as an ONNX graph",
        description="Write a model's graph and weights for onnxruntime (needs the packages onnx "
        "and onnxscript), and compare it with the original where onnxruntime is installed. Exit "
        "code 0: written; 1: it gives other texts; 2: it cannot be written.",
    )
    onnx.add_argument("model", type=Path, help="its Hugging Face folder")
    onnx.add_argument("folder", type=Path, help="where to write model.onnx and the tokenizer")
    onnx.set_defaults(run=_export_onnx)
    integers = commands.add_parser(
        "quantise",
        help="write a model with 8-bit integers as weights",
        description="Write a model's projections as 8-bit integers with a scale for each row "
        "(torchao, weight-only), and say how far its text is the original's. Exit code 0: "
        "written; 2: it cannot be.",
    )
    integers.add_argument("model", type=Path, help="its Hugging Face folder")
    integers.add_argument("folder", type=Path, help="where to write the model and its tokenizer")
    integers.set_defaults(run=_quantise)


def _positive(text: str) -> int:
    """Read a whole number above 0, or say so in argparse's words."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _speculate(args: argparse.Namespace) -> int:
    import torch

    from iskd.data.model_folder import check_model_folder
    from iskd.models.folder import load_config, load_model, load_tokenizer
    from iskd.serving.draft_table import as_table
    from iskd.serving.speculation import (
        PROMPTS,
        Drafting,
        check_rollback,
        encode,
        measure_drafts,
    )

    for folder in (args.teacher, *args.model):
        check_model_folder(folder, "iskd speculate")
    tokenizer = load_tokenizer(args.teacher)
    configs = [load_config(folder) for folder in (args.teacher, *args.model)]
    for folder, config in zip((args.teacher, *args.model), configs, strict=True):
        check_rollback(config, str(folder))
    for folder, config in zip(args.model, configs[1:], strict=True):
        _check_tokens(tokenizer, folder, same_size=config.vocab_size == configs[0].vocab_size)
    longest = min(config.max_position_embeddings for config in configs)
    where = str(args.prompts or "the built-in prompts")
    lines = PROMPTS if args.prompts is None else _lines(args.prompts)
    prompts = encode(lines, tokenizer, room=longest - args.new_tokens, where=where)
    dtype = getattr(torch, args.precision)
    teacher = load_model(args.teacher, dtype)
    drafting = Drafting(args.new_tokens, tuple(args.draft_tokens), args.repeats)
    found = []
    for folder in args.model:
        # One at a time: a chain's checkpoints together may be larger than the memory.
        draft = load_model(folder, dtype)
        found += measure_drafts(teacher, draft, prompts, drafting, name=_name(folder, args.model))
        del draft
    if args.json:
        sys.stdout.write(json.dumps([each.as_record() for each in found], indent=2) + "\n")
    else:
        sys.stdout.write(as_table(found))
    return 0


def _check_tokens(tokenizer: "PreTrainedTokenizerBase", folder: Path, *, same_size: bool) -> None:
    from iskd.models.folder import load_tokenizer

    if not same_size or load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"iskd speculate: {folder} has other tokens than the teacher, so it cannot draft for "
            "it; name a model that was made from this teacher"
        )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a text file, a prompt a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: it is no text in UTF-8; save it as that") from None


def _name(folder: Path, others: list[Path]) -> str:
    """Give a folder's name as short as it tells it from the others."""
    parts = folder.resolve().parts
    rest = [other.resolve().parts for other in others if other.resolve() != folder.resolve()]
    for length in range(1, len(parts)):
        if all(other[-length:] != parts[-length:] for other in rest):
            return "/".join(parts[-length:])
    return str(folder)


def _export_plain(args: argparse.Namespace) -> int:
    from iskd.data.model_folder import check_model_folder
    from iskd.models.folder import load_model, load_tokenizer, published_dtype, save_model
    from iskd.serving.plain_export import plain_model

    check_model_folder(args.model, "iskd export-plain")
    model = load_model(args.model, published_dtype(args.model))
    plain = plain_model(model, str(args.model))
    save_model(plain, load_tokenizer(args.model), args.folder, like=args.model)
    blocks = plain.config.num_hidden_layers
    print(f"{args.folder}: a {type(plain).__name__} of {blocks} blocks, without code of its own")
    return 0


def _export_gguf(args: argparse.Namespace) -> int:
    from iskd.data.model_folder import check_model_folder
    from iskd.models.folder import load_model, load_tokenizer, published_dtype
    from iskd.serving.agreement import NEW_TOKENS, check_prompts, compare
    from iskd.serving.gguf_export import FORMATS, export_gguf, gguf_logits, round_matrices

    check_model_folder(args.model, "iskd export-gguf")
    if args.file.suffix != ".gguf" or not args.file.parent.is_dir():
        raise UserError(
            f"iskd export-gguf: {args.file} is no file to write to; name <name>.gguf in a folder "
            "that is there"
        )
    kinds = {dtype: kind for kind, dtype in FORMATS.items()}
    kind = args.type or kinds[published_dtype(args.model)]
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    layout = export_gguf(
        model, tokenizer, args.file, kind=kind, where=str(args.model), pre=args.pre
    )
    print(
        f"{args.file}: {len(layout.blocks)} blocks as llama.cpp's architecture "
        f"{layout.architecture}, {kind}, texts of up to {layout.context} tokens"
    )
    if not _is_there("llama_cpp"):
        print("not compared: llama-cpp-python is not installed (pip install llama-cpp-python)")
        return 0
    # What the file holds is rounded, so that is what it is compared with.
    round_matrices(model, kind)
    prompts = check_prompts(tokenizer, room=layout.context)
    room = max(map(len, prompts)) + NEW_TOKENS
    found = compare(model, gguf_logits(args.file, room=room), prompts)
    print(f"llama.cpp: {found}")
    return 0 if found.agrees else 1


def _export_onnx(args: argparse.Namespace) -> int:
    from iskd.data.model_folder import check_model_folder
    from iskd.models.folder import load_model, load_tokenizer
    from iskd.serving.agreement import check_prompts, compare
    from iskd.serving.onnx_export import export_onnx, onnx_logits

    check_model_folder(args.model, "iskd export-onnx")
    _check_installed("iskd export-onnx", "onnx", "onnxscript")
    model, tokenizer = load_model(args.model).cpu(), load_tokenizer(args.model)
    graph = export_onnx(model, args.folder, where=str(args.model))
    tokenizer.save_pretrained(args.folder)
    print(f"{graph}: {model.config.num_hidden_layers} blocks, float32, no KV cache")
    if not _is_there("onnxruntime"):
        print("not compared: onnxruntime is not installed (pip install onnxruntime)")
        return 0
    prompts = check_prompts(tokenizer, room=model.config.max_position_embeddings)
    found = compare(model, onnx_logits(graph), prompts)
    print(f"onnxruntime: {found}")
    return 0 if found.agrees else 1


def _quantise(args: argparse.Namespace) -> int:
    from iskd.data.model_folder import check_model_folder
    from iskd.models.folder import load_model, load_tokenizer, published_dtype
    from iskd.serving.agreement import check_prompts, compare, logits_of
    from iskd.serving.quantised import load_quantised, quantise

    check_model_folder(args.model, "iskd quantise")
    _check_installed("iskd quantise", "torchao")
    found = quantise(args.model, args.folder)
    dtype = published_dtype(args.model)
    name = str(dtype).removeprefix("torch.")
    print(
        f"{args.folder}: {found.matrices} matrices of int8 ({found.share:.0%} of the parameters), "
        f"the rest {name}; {found.after / 1e6:.1f} MB instead of {found.before / 1e6:.1f}"
    )
    model = load_model(args.model, dtype).cpu()
    prompts = check_prompts(load_tokenizer(args.model), room=model.config.max_position_embeddings)
    # Read from the folder, so that it is what will be served.
    read = logits_of(load_quantised(args.folder, dtype))
    print(f"beside the original: {compare(model, read, prompts)}")
    return 0


def _check_installed(command: str, *packages: str) -> None:
    """Refuse a command for what is not in the lock and not installed either."""
    missing = " ".join(name for name in packages if not _is_there(name))
    if missing:
        raise UserError(f"{command}: not installed: {missing}; pip install {missing}")


def _is_there(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
