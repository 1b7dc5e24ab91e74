"""Replace all blocks of a step at once, with or without a curriculum, and fine-tune."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.data.corpus import load_blocks
    from iskd.models.folder import load_config, load_model, load_tokenizer, save_model
    from iskd.models.planning import new_block_sizes
    from iskd.provenance.artifact import canonical_json
    from iskd.training.curve import write_history
    from iskd.training.steps import substitute_at_once

    done = substitute_at_once(
        lambda: load_model(job.folder("teacher")),
        new_block_sizes(load_config(job.folder("teacher")), job.params["spec"]),
        load_blocks(Path(job.inputs["train"])),
        job.params["spec"],
        step=int(job.wildcards["step"]),
        seed=job.seed,
        work=job.work,
    )
    save_model(
        done.model,
        load_tokenizer(job.folder("teacher")),
        job.out,
        like=job.folder("teacher"),
        precision=job.params["spec"]["save_precision"],
    )
    write_history(done.history, job.out / "history.jsonl")
    (job.out / "substitution.json").write_text(canonical_json(done.facts), encoding="utf-8")
    job.summary |= done.facts
