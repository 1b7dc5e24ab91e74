"""Write what each arm lost, what that cost, and how much of the first arm's gap it closes."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.ablation_table import ABLATION_NOTE, ablation_table
    from iskd.paper.metrics import read_metrics
    from iskd.paper.style import arm_styles
    from iskd.paper.tables import save_table

    spec = job.params["spec"]
    metrics = read_metrics(Path(job.inputs["metrics"]))
    reported = metrics[metrics["step"] <= metrics["teacher"].map(spec["headline_step"])]
    baseline = spec["baseline"]
    table = ablation_table(reported, spec["headline"], baseline)
    name = arm_styles([baseline])[baseline].label if baseline else "no arm"
    caption = f"Study {spec['study']}: arms by held-out loss. {ABLATION_NOTE.format(baseline=name)}"
    save_table(table, job.out / "ablation", caption, f"tab:{spec['study']}-ablation")
