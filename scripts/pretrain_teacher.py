"""Train a teacher from scratch on the corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.data.corpus import load_blocks
    from iskd.models.folder import load_tokenizer, save_model
    from iskd.training.curve import write_history
    from iskd.training.pretrain import pretrain

    tokenizer = load_tokenizer(job.folder("tokenizer"))
    blocks = load_blocks(Path(job.inputs["train"]))
    model, history = pretrain(blocks, tokenizer, job.params["spec"], work=job.work)
    save_model(model, tokenizer, job.out, precision=job.params["spec"]["save_precision"])
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters(), "loss": history[-1]["loss"]}
