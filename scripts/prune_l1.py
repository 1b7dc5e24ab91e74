"""The baseline L1: remove the weakest heads and neurons to the reference's size, then tune."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.baselines.l1_pruning import choose_units, listing, prune
    from iskd.baselines.tuning import tune_and_publish
    from iskd.models.folder import load_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest

    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(
        teacher.config, SizeRequest.of(job.params["sizes"]), job.params["reference_blocks"]
    )
    units = choose_units(teacher, target)
    tune_and_publish(job, prune(teacher, units))
    (job.out / "removed.json").write_text(canonical_json(listing(units)), encoding="utf-8")
    job.summary |= {"target": target}
