"""Write what each arm cost: tokens, FLOPs, device hours, energy."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.queries import read_reported
    from iskd.paper.resources import COSTS_NOTE, costs_columns, costs_table
    from iskd.paper.tables import save_study_table

    spec = job.params
    tables = [
        read_reported(job.inputs[name], spec["headline_step"])
        for name in ("metrics", "measurements")
    ]
    table = costs_table(*tables)
    about = f"what the arms cost. {COSTS_NOTE}"
    save_study_table(table, job.out / "costs", spec["study"], about, costs_columns(table))
