"""Measure one model's next-token loss on a held-out text, and how far it is from its teacher."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    import torch

    from iskd.data.corpus import load_sequences, load_stories
    from iskd.evaluation.flops import flops_per_token
    from iskd.evaluation.heldout import score_sequences
    from iskd.evaluation.losses import heldout_metrics
    from iskd.evaluation.results import write_result
    from iskd.models.folder import checkpoint_bytes, load_model

    text = Path(job.inputs["heldout"])
    precision = getattr(torch, job.params["precision"])
    model = load_model(job.folder("model"), precision)
    stories, sequences = load_stories(text), load_sequences(text)
    samples = score_sequences(
        model,
        sequences,
        batch_size=job.params["batch_size"],
        # The teacher itself is not compared with anything.
        teacher=load_model(job.folder("teacher"), precision) if "teacher" in job.inputs else None,
        stories=None if stories is None else stories.tolist(),
        work=job.work,
    )
    facts = {
        "parameters": model.num_parameters(),
        "flops_per_token": flops_per_token(model, sequences.shape[1]),
        "checkpoint_bytes": checkpoint_bytes(job.folder("model")),
    }
    metrics = heldout_metrics(samples)
    write_result(job.out, metrics, facts=facts, samples=samples)
    job.summary |= {name: metric.value for name, metric in metrics.items()}
