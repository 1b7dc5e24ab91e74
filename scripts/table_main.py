"""Write the main table: what each arm keeps at the headline step, beside what is claimed."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.metrics import chance_levels, read_metrics
    from iskd.paper.tables import MAIN_TABLE_NOTE, at_headline, main_table, save_table

    spec = job.params
    metrics = read_metrics(Path(job.inputs["metrics"]))
    reported = at_headline(metrics, spec["headline_step"])
    chance = chance_levels(metrics)
    table = main_table(reported, spec["headline"], chance, claims=spec["claims"])
    caption = f"Study {spec['study']} at its headline step. {MAIN_TABLE_NOTE}"
    save_table(table, job.out / "main", caption, f"tab:{spec['study']}")
