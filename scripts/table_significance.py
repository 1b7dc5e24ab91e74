"""Write how each arm differs from its teacher, item by item, and how sure that is."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import at_headline
    from iskd.paper.significance import SIGNIFICANCE_NOTE, save_significance, significance_table

    spec = job.params["spec"]
    metrics = read_metrics(Path(job.inputs["metrics"]))
    table = significance_table(at_headline(metrics, spec["headline_step"]), spec["headline"])
    caption = f"Study {spec['study']}: differences to the teacher. {SIGNIFICANCE_NOTE}"
    save_significance(table, job.out / "significance", caption, f"tab:{spec['study']}-significance")
