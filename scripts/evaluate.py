"""Evaluate one model on one task through lm-eval."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    import torch

    from iskd.evaluation.harness import evaluate_task
    from iskd.evaluation.results import write_result
    from iskd.models.folder import load_model, load_tokenizer

    spec = job.params["spec"]
    result = evaluate_task(
        load_model(job.folder("model"), getattr(torch, spec["precision"])),
        load_tokenizer(job.folder("model")),
        spec["kind"],
        Path(job.inputs["rows"]),
        batch_size=spec["batch_size"],
        seed=0,
        work=job.work,
    )
    write_result(job.out, result.metrics, facts={"chance": result.chance}, samples=result.samples)
    job.summary |= {name: metric.value for name, metric in result.metrics.items()}
