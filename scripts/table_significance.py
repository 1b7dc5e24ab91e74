"""Write how each arm differs from its teacher, item by item, and how sure that is."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.queries import read_reported
    from iskd.paper.significance import SIGNIFICANCE_NOTE, significance_columns, significance_table
    from iskd.paper.tables import save_study_table

    spec = job.params
    reported = read_reported(job.inputs["metrics"], spec["headline_step"])
    table = significance_table(reported, spec["headline"])
    about = f"differences to the teacher. {SIGNIFICANCE_NOTE}"
    columns = significance_columns(table)
    save_study_table(table, job.out / "significance", spec["study"], about, columns)
