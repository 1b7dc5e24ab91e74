"""Write down which block is replaced when, and what is left of the model after each step."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.models.folder import load_config
    from iskd.models.planning import plan_substitutions
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest

    plan = plan_substitutions(
        load_config(job.folder("teacher")),
        job.params["order"],
        job.params["steps"],
        SizeRequest.of(job.params["sizes"]),
    )
    (job.out / "plan.json").write_text(canonical_json(plan), encoding="utf-8")
    job.summary |= {"steps": len(plan["steps"]), "parameters": plan["teacher_parameters"]}
