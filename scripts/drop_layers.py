"""The baseline layer drop: leave out the blocks of least influence, then tune the rest."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.layer_drop import block_influence, drop_layers
    from iskd.baselines.tuning import tune
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.training.loop import write_history

    spec = job.params["spec"]
    step = int(job.wildcards["step"])
    blocks = load_blocks(Path(job.inputs["train"]))
    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(teacher.config, spec)
    calibration = step_sequences(blocks, spec["calibration"], seed=job.seed, first=1, last=1)
    influence = block_influence(teacher, calibration.long(), spec["training"]["batch_size"])
    by_steps = spec["match"] == "steps"
    model, facts = drop_layers(
        teacher,
        influence,
        count=step if by_steps else None,
        parameters=None if by_steps else target,
        first=spec["replaced"] if spec["choose"] == "reference" else (),
    )
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
    (job.out / "dropped.json").write_text(canonical_json(facts), encoding="utf-8")
    job.summary |= {"parameters": model.num_parameters(), "target": target}
