"""The control: the whole teacher, tuned on the tokens that the reference was tuned on."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.training.loop import fine_tune, write_history

    spec = job.params["spec"]
    model = load_model(job.folder("teacher"))
    blocks = step_sequences(
        load_blocks(Path(job.inputs["train"])),
        spec["training"]["sequences"],
        seed=job.seed,
        first=1,
        last=int(job.wildcards["step"]),
    )
    history = fine_tune(
        model,
        blocks,
        spec["training"],
        seed=job.seed,
    )
    save_model(model, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters()}
