"""The baseline L1: remove the weakest heads and neurons to the reference's size, then tune."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.l1_pruning import choose_units, listing, prune
    from iskd.baselines.tuning import tune
    from iskd.data.corpus import load_blocks
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.training.loop import write_history

    spec = job.params["spec"]
    step = int(job.wildcards["step"])
    blocks = load_blocks(Path(job.inputs["train"]))
    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(teacher.config, spec)
    units = choose_units(teacher, target)
    model = prune(teacher, units)
    history = tune(
        model,
        lambda: load_model(job.folder("teacher")),
        blocks,
        spec,
        step=step,
        seed=job.seed,
        work=job.work,
    )
    save_model(model, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    (job.out / "removed.json").write_text(canonical_json(listing(units)), encoding="utf-8")
    job.summary |= {"parameters": model.num_parameters(), "target": target}
