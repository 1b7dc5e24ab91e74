"""Write the study's main table: what each arm keeps at the headline step."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.tables import MAIN_TABLE_NOTE, main_table, save_table

    spec = job.params["spec"]
    metrics = read_metrics(Path(job.inputs["metrics"]))
    reported = metrics[metrics["step"] <= metrics["teacher"].map(spec["headline_step"])]
    table = main_table(reported, spec["headline"], spec["chance"])
    caption = f"Study {spec['study']} at its headline step. {MAIN_TABLE_NOTE}"
    save_table(table, job.out / "main", caption, f"tab:{spec['study']}")
