"""Cut a corpus into token sequences of fixed length, with one teacher's tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.data.corpus import save_blocks, token_blocks
    from iskd.data.texts import read_texts
    from iskd.models.folder import load_tokenizer

    tokenizer = load_tokenizer(job.folder("tokenizer"))
    for part in ("train", "heldout"):
        texts = read_texts(Path(job.inputs[part]))
        blocks = token_blocks(texts, tokenizer, job.params["spec"]["block_length"])
        save_blocks(blocks, job.out / f"{part}.safetensors")
        job.summary[f"{part}_tokens"] = blocks.numel()
