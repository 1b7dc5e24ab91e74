"""Let one model continue the beginnings of held-out texts, and measure what it writes."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    import torch

    from iskd.data.corpus import load_sequences
    from iskd.evaluation.generation import (
        Sampling,
        continue_prompts,
        draw_prompts,
        generation_metrics,
        reading_page,
    )
    from iskd.evaluation.results import write_result
    from iskd.models.folder import load_model, load_tokenizer
    from iskd.provenance.artifact import json_lines

    sampling, precision = job.params["sampling"], getattr(torch, job.params["precision"])
    model = load_model(job.folder("model"), precision)
    sequences = load_sequences(Path(job.inputs["heldout"]))
    samples = continue_prompts(
        model,
        load_model(job.folder("teacher"), precision) if "teacher" in job.inputs else model,
        load_tokenizer(job.folder("model")),
        draw_prompts(sequences, sampling["prompts"], sampling["prompt_tokens"], job.seed),
        Sampling(sampling["new_tokens"], sampling["temperature"], sampling["top_p"], job.seed),
    )
    metrics = generation_metrics(samples)
    write_result(job.out, metrics)
    (job.out / "samples.jsonl").write_text(json_lines(samples), encoding="utf-8")
    page = reading_page(samples, f"Continuations by {job.wildcards['model']}")
    (job.out / "samples.html").write_text(page, encoding="utf-8")
    job.summary |= {name: metric.value for name, metric in metrics.items()}
