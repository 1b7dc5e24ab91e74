"""The control: the whole teacher, tuned on the tokens that the reference was tuned on."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.tuning import tune
    from iskd.data.corpus import load_blocks
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.training.loop import write_history

    spec = job.params["spec"]
    step = int(job.wildcards["step"])
    blocks = load_blocks(Path(job.inputs["train"]))
    teacher = load_model(job.folder("teacher"))
    history = tune(
        teacher,
        lambda: load_model(job.folder("teacher")),
        blocks,
        spec,
        step=step,
        seed=job.seed,
        work=job.work,
    )
    save_model(teacher, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": teacher.num_parameters()}
