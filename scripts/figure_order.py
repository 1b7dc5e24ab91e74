"""Draw one teacher's figure: which block was replaced when, and the loss that each step added."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure
    from iskd.paper.figures.order import order_figure
    from iskd.paper.metrics import read_metrics

    metrics = read_metrics(job.inputs["metrics"])
    save_figure(
        *order_figure(metrics, job.wildcards["teacher"]), job.out / "order", job.request_digest
    )
