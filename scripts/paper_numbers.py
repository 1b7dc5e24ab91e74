"""Write a LaTeX macro for every number of metrics.csv at the headline step."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.numbers import numbers_table, save_numbers
    from iskd.provenance.artifact import file_digest

    spec = job.params
    table = numbers_table(read_metrics(job.inputs["metrics"]), spec["headline_step"])
    root = file_digest(Path(job.inputs["metrics_manifest"]))
    save_numbers(table, job.out / "numbers", f"Numbers of the study {spec['study']}.", root)
    job.summary |= {"numbers": len(table)}
