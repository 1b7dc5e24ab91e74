"""Draw one teacher's figure: training curves across steps, the substitutions marked."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.training import read_curves, training_figure

    spec = job.params
    curves = read_curves(job.inputs["histories"], spec, job.wildcards["teacher"])
    save_figure(*training_figure(curves, spec["chained"]), job.out / "training", job.request_digest)
    save_page(job.out / "training", job.params["caption"])
