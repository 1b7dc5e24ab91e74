"""Measure one model's next-token loss on the held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    import torch

    from iskd.data.corpus import load_blocks
    from iskd.evaluation.flops import flops_per_token
    from iskd.evaluation.heldout import heldout_loss
    from iskd.evaluation.results import write_result
    from iskd.models.folder import load_model

    spec = job.params["spec"]
    model = load_model(job.folder("model"), getattr(torch, spec["precision"]))
    blocks = load_blocks(Path(job.inputs["heldout"]))
    loss = heldout_loss(model, blocks, batch_size=spec["batch_size"], work=job.work)
    facts = {
        "parameters": model.num_parameters(),
        "flops_per_token": flops_per_token(model, blocks.shape[1]),
    }
    write_result(job.out, {"loss": loss}, facts=facts)
    job.summary |= {"loss": loss.value}
