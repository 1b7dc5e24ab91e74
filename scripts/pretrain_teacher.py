"""Train a teacher from scratch on the corpus."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_tokenizer, save_model
    from iskd.settings import TrainingSettings
    from iskd.training.curve import write_history
    from iskd.training.pretrain import pretrain

    tokenizer = load_tokenizer(job.folder("tokenizer"))
    model, history = pretrain(
        load_sequences(Path(job.inputs["train"])),
        tokenizer,
        job.params["architecture"],
        TrainingSettings.of(job.params["training"]),
        family=job.params["family"],
        seed=job.seed,
        work=job.work,
    )
    save_model(model, tokenizer, job.out, precision=job.params["save_precision"])
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters(), "loss": history[-1]["loss"]}
