"""Measure which items of a task share words in a row with the training stories."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.rows import read_any_rows
    from iskd.data.texts import stream_texts
    from iskd.evaluation.overlap import measure_overlap, overlap_metrics
    from iskd.evaluation.results import write_result, write_samples

    rows = read_any_rows(Path(job.inputs["rows"]))
    stories = stream_texts(Path(job.inputs["train"]))
    items = measure_overlap(rows, stories, job.params["n"])
    metrics = overlap_metrics(items)
    write_result(job.out, metrics)
    write_samples(job.out / "items.jsonl.gz", items)
    job.summary |= {name: metric.value for name, metric in metrics.items()}
