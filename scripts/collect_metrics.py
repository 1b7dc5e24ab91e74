"""Collect what all evaluations measured into one tidy table."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.evaluation.collect import collect
    from iskd.paper.metrics import write_metrics

    rows = collect(job.inputs, job.params)
    write_metrics(rows, job.out / "metrics.csv")
    job.summary |= {"rows": len(rows)}
