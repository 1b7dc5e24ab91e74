"""The baseline L1: remove the weakest heads and neurons to the reference's size, then tune."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.l1_pruning import choose_units, listing, prune
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.models.planning import planned_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.training.loop import fine_tune, write_history

    spec = job.params["spec"]
    teacher = load_model(job.folder("teacher"))
    target = planned_parameters(job.folder("plan") / "plan.json", spec["replaced"])
    units = choose_units(teacher, target)
    model = prune(teacher, units)
    blocks = step_sequences(
        load_blocks(Path(job.inputs["train"])),
        spec["training"]["sequences"],
        seed=job.seed,
        first=1,
        last=int(job.wildcards["step"]),
    )
    history = fine_tune(model, blocks, spec["training"], seed=job.seed)
    save_model(model, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    (job.out / "removed.json").write_text(canonical_json(listing(units)), encoding="utf-8")
    job.summary |= {"parameters": model.num_parameters(), "target": target}
