"""Write the report's first page."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import chance_levels
    from iskd.paper.summary import STYLE, summary_page
    from iskd.provenance.artifact import file_digest

    spec = job.params
    metrics = read_metrics(job.inputs["metrics"])
    chance = chance_levels(metrics)
    facts = {**spec, "root": file_digest(Path(job.inputs["metrics_manifest"]))}
    text = summary_page(metrics, spec["headline"], chance, spec["headline_step"], facts)
    (job.out / "summary.rst").write_text(STYLE + text, encoding="utf-8")
