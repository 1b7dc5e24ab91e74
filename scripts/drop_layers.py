"""The baseline layer drop: leave out the blocks of least influence, then tune the rest."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.baselines.gaps import refit_before_gaps
    from iskd.baselines.layer_drop import block_influence, drop_layers
    from iskd.baselines.tuning import tune_and_publish
    from iskd.data.corpus import load_sequences, step_sequences
    from iskd.models.folder import load_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest

    selection, replaced = job.params["selection"], job.params["reference_blocks"]
    corpus = load_sequences(Path(job.inputs["train"]))
    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(teacher.config, SizeRequest.of(job.params["sizes"]), replaced)
    calibration = step_sequences(corpus, selection["calibration"], seed=job.seed, first=1, last=1)
    size = job.params["training"]["batch_size"]
    influence = block_influence(teacher, calibration.long(), size)
    by_steps = selection["match"] == "steps"
    model, facts = drop_layers(
        teacher,
        influence,
        count=int(job.wildcards["step"]) if by_steps else None,
        parameters=None if by_steps else target,
        first=replaced if selection["choose"] == "reference" else (),
    )
    if selection.get("gap", "none") == "refit":
        kept = [i for i in range(len(influence)) if i not in facts["dropped"]]
        half = job.params["training"]["precision"] == "bfloat16"
        facts["refitted"] = refit_before_gaps(model, teacher, kept, calibration, size, half=half)
    tune_and_publish(job, model)
    (job.out / "dropped.json").write_text(canonical_json(facts), encoding="utf-8")
    job.summary |= {"target": target}
