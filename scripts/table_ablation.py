"""Write what each arm lost, what that cost, and how much of the first arm's gap it closes."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.ablation_table import ABLATION_NOTE, ablation_table
    from iskd.paper.queries import read_reported
    from iskd.paper.style import arm_styles
    from iskd.paper.tables import save_study_table

    spec = job.params
    baseline = spec["baseline"]
    reported = read_reported(job.inputs["metrics"], spec["headline_step"])
    table = ablation_table(reported, spec["headline"], baseline)
    name = arm_styles([baseline])[baseline].label if baseline else "no arm"
    about = f"arms by held-out loss. {ABLATION_NOTE.format(baseline=name)}"
    save_study_table(table, job.out / "ablation", spec["study"], about)
