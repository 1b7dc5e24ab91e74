"""Write the main table: what each arm keeps at the headline step, beside what is claimed."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.main_table import MAIN_TABLE_NOTE, main_table
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import at_headline, chance_levels
    from iskd.paper.tables import save_table

    spec = job.params
    metrics = read_metrics(job.inputs["metrics"])
    reported = at_headline(metrics, spec["headline_step"])
    chance = chance_levels(metrics)
    table = main_table(reported, spec["headline"], chance, claims=spec["claims"])
    caption = f"Study {spec['study']} at its headline step. {MAIN_TABLE_NOTE}"
    save_table(table, job.out / "main", caption, f"tab:{spec['study']}")
