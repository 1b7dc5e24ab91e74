"""Draw one teacher's figure: scores and held-out loss against reduction."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.tradeoff import tradeoff_figure
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import chance_levels

    spec = job.params
    metrics = read_metrics(job.inputs["metrics"])
    figure, plotted = tradeoff_figure(
        metrics,
        spec["headline"],
        chance_levels(metrics),
        job.wildcards["teacher"],
        spec["claims"],
    )
    save_figure(figure, plotted, job.out / "tradeoff", job.request_digest)
    save_page(job.out / "tradeoff", job.params["caption"])
