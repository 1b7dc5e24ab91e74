"""Collect what clocks and sensors measured into one tidy table, beside metrics.csv."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.evaluation.measurements import collect_measurements
    from iskd.paper.metrics import read_metrics, write_metrics
    from iskd.paper.queries import reductions_of

    metrics = read_metrics(job.inputs["metrics"])
    rows = collect_measurements(job.inputs, job.params, reductions_of(metrics))
    write_metrics(rows, job.out / "measurements.csv")
    job.summary |= {"rows": len(rows)}
