"""Collect what all evaluations measured into one tidy table."""

from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.evaluation.collect import collect
    from iskd.paper.metrics import write_metrics

    rows = collect(job.inputs, job.params)
    write_metrics(rows, job.out / "metrics.csv")
    job.summary |= {"rows": len(rows)}
