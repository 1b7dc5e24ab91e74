"""The baseline KD: a smaller student learns from the teacher's predictions."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.student import make_student
    from iskd.baselines.tuning import tune
    from iskd.data.corpus import load_blocks
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.training.loop import write_history

    spec = job.params["spec"]
    step = int(job.wildcards["step"])
    blocks = load_blocks(Path(job.inputs["train"]))
    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(teacher.config, spec)
    model, facts = make_student(
        teacher, target, start=spec["start"], shape=spec["student"], seed=job.seed
    )
    history = tune(
        model,
        lambda: load_model(job.folder("teacher")),
        blocks,
        spec,
        step=step,
        seed=job.seed,
        work=job.work,
        new=[model],
    )
    save_model(model, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    (job.out / "student.json").write_text(canonical_json(facts), encoding="utf-8")
    job.summary |= {"parameters": model.num_parameters(), "target": target}
