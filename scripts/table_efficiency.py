"""Write what each arm needs: parameters, memory and speed, beside its teacher."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.queries import read_reported
    from iskd.paper.resources import EFFICIENCY_NOTE, efficiency_columns, efficiency_table
    from iskd.paper.tables import save_study_table

    spec = job.params
    tables = [
        read_reported(job.inputs[name], spec["headline_step"])
        for name in ("metrics", "measurements")
    ]
    table = efficiency_table(*tables)
    about = f"size, memory and speed. {EFFICIENCY_NOTE}"
    save_study_table(table, job.out / "efficiency", spec["study"], about, efficiency_columns(table))
