"""Replace one block by a compact one and fine-tune: one step of ISKD."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.models.planning import compact_sizes
    from iskd.models.substitution import replace_block
    from iskd.training.loop import fine_tune, write_history

    spec = job.params["spec"]
    previous = load_model(job.folder("previous"))
    sizes = compact_sizes(spec["sizes"], previous.config)
    step = int(job.wildcards["step"])
    seed = job.seed * 1000 + step
    model, block = replace_block(previous, spec["block"], sizes, spec["initialisation"], seed)
    history = fine_tune(
        model,
        step_sequences(
            load_blocks(Path(job.inputs["train"])),
            spec["training"]["sequences"],
            seed=job.seed,
            first=step,
            last=step,
        ),
        spec["training"],
        seed=seed,
        new=[block],
    )
    save_model(model, load_tokenizer(job.folder("previous")), job.out)
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters(), "block": spec["block"]}
