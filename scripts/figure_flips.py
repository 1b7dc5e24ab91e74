"""Draw one teacher's figure: how many answers changed behind each change of accuracy."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.flips import flips_figure
    from iskd.paper.metrics import read_metrics

    metrics = read_metrics(job.inputs["metrics"])
    drawn = flips_figure(metrics, job.params["headline"], job.wildcards["teacher"])
    save_figure(*drawn, job.out / "flips", job.request_digest)
    save_page(job.out / "flips", job.params["caption"])
