"""Measure how fast one model is and what memory it takes, in turn with its teacher."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    import torch

    from iskd.evaluation.efficiency import MODEL, Load, measure, summarise
    from iskd.evaluation.results import write_result
    from iskd.models.folder import load_model, load_tokenizer
    from iskd.provenance.artifact import json_lines
    from iskd.serving.drafting import drafting_records

    precision = getattr(torch, job.params["precision"])
    settings = dict(job.params["load"])
    drafted = settings.pop("draft_tokens", None)
    load = Load(**{**settings, "batch_sizes": tuple(settings["batch_sizes"])}, seed=job.seed)
    model, teacher = (load_model(job.folder(name), precision) for name in ("model", "teacher"))
    records = list(measure(model, teacher, load))
    if drafted:
        tokenizer = load_tokenizer(job.folder("teacher"))
        records += drafting_records(model, teacher, tokenizer, load, drafted)
    (job.out / "repeats.jsonl").write_text(json_lines(records), encoding="utf-8")
    metrics = summarise(records)[MODEL]
    write_result(job.out, metrics, facts={"device": str(model.device), "threads": job.threads})
    job.summary |= {name: m.value for name, m in metrics.items() if name.endswith("_ratio")}
