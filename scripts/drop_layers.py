"""The baseline layer drop: leave out the blocks of least influence, then tune the rest."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.layer_drop import block_influence, drop_layers
    from iskd.baselines.tuning import tune_and_save
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json

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
    tune_and_save(job, model)
    (job.out / "dropped.json").write_text(canonical_json(facts), encoding="utf-8")
    job.summary |= {"target": target}
