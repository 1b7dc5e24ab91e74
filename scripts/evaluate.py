"""Evaluate one model on one task through lm-eval."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    import torch

    from iskd.evaluation.harness import evaluate_stock_task, evaluate_task
    from iskd.evaluation.results import write_result
    from iskd.models.folder import load_model, load_tokenizer

    task = job.params["task"]
    model = load_model(job.folder("model"), getattr(torch, job.params["precision"]))
    tokenizer, rows = load_tokenizer(job.folder("model")), Path(job.inputs["rows"])
    how = {"batch_size": job.params["batch_size"], "seed": job.seed, "work": job.work}
    if task["stock"]:
        examples = job.inputs.get("examples")
        result = evaluate_stock_task(
            model,
            tokenizer,
            task["kind"],
            rows,
            examples_path=Path(examples) if examples else None,
            fewshot=task["fewshot"],
            **how,
        )
    else:
        result = evaluate_task(model, tokenizer, task["kind"], rows, **how)
    write_result(job.out, result.metrics, facts={"chance": result.chance}, samples=result.samples)
    job.summary |= {name: metric.value for name, metric in result.metrics.items()}
