"""Write the model card of one checkpoint, with what was measured of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.card import model_card
    from iskd.paper.metrics import read_metrics

    spec = job.params["spec"]
    metrics, measurements = (
        read_metrics(Path(job.inputs[name])) for name in ("metrics", "measurements")
    )
    text = model_card(metrics, measurements, spec["model"], spec["headline"], spec)
    (job.out / "README.md").write_text(text, encoding="utf-8")
