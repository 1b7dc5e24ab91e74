"""Draw one teacher's figure: scores and held-out loss against reduction."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.figures import save_figure, tradeoff_figure
    from iskd.paper.metrics import read_metrics

    spec = job.params["spec"]
    figure, plotted = tradeoff_figure(
        read_metrics(Path(job.inputs["metrics"])),
        spec["headline"],
        spec["chance"],
        job.wildcards["teacher"],
    )
    save_figure(figure, plotted, job.out / "tradeoff")
