"""Draw one teacher's figure: loss on held-out text, and on other texts, by step."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.loss import loss_figure
    from iskd.paper.metrics import read_metrics

    metrics = read_metrics(job.inputs["metrics"])
    save_figure(
        *loss_figure(metrics, job.wildcards["teacher"]), job.out / "loss", job.request_digest
    )
    save_page(job.out / "loss", job.params["caption"])
