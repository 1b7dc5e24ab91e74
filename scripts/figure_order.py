"""Draw one teacher's figure: what each step changed, and the loss that it added."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.figures.canvas import save_figure, save_page
    from iskd.paper.figures.order import order_figure, read_changes
    from iskd.paper.metrics import read_metrics

    teacher = job.wildcards["teacher"]
    changes = read_changes(job.inputs["substitutions"], job.params["substitutions"], teacher)
    metrics = read_metrics(job.inputs["metrics"])
    save_figure(*order_figure(metrics, teacher, changes), job.out / "order", job.request_digest)
    save_page(job.out / "order", job.params["caption"])
