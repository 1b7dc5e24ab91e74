"""The baseline KD: a smaller student of fixed shape learns from the teacher's logits."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.student import make_student
    from iskd.data.corpus import load_blocks, step_sequences
    from iskd.models.folder import load_model, load_tokenizer, save_model
    from iskd.training.loop import fine_tune, write_history
    from iskd.training.objectives import Distillation

    spec = job.params["spec"]
    teacher = load_model(job.folder("teacher"))
    student = make_student(teacher, spec["student"], job.seed)
    blocks = step_sequences(
        load_blocks(Path(job.inputs["train"])),
        spec["training"]["sequences"],
        seed=job.seed,
        first=1,
        last=int(job.wildcards["step"]),
    )
    history = fine_tune(
        student,
        blocks,
        spec["training"],
        seed=job.seed,
        new=[student],
        objective=Distillation(teacher, temperature=spec["temperature"], weight=spec["weight"]),
    )
    save_model(student, load_tokenizer(job.folder("teacher")), job.out)
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": student.num_parameters()}
