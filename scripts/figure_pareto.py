"""Draw one teacher's figure: loss against parameters, measured decoding speed and memory."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.pareto import pareto_figure
    from iskd.paper.metrics import read_metrics

    metrics, measurements = (read_metrics(job.inputs[name]) for name in ("metrics", "measurements"))
    drawn = pareto_figure(metrics, measurements, job.wildcards["teacher"])
    save_figure(*drawn, job.out / "pareto", job.request_digest)
    save_page(job.out / "pareto", job.params["caption"])
