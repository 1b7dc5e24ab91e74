"""The baseline KD: a smaller student learns from the teacher's predictions."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.baselines.student import make_student
    from iskd.baselines.tuning import tune_and_publish
    from iskd.models.folder import load_model
    from iskd.models.planning import matched_parameters
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest

    teacher = load_model(job.folder("teacher"))
    target = matched_parameters(
        teacher.config, SizeRequest.of(job.params["sizes"]), job.params["reference_blocks"]
    )
    model, facts = make_student(teacher, target, **job.params["student"], seed=job.seed)
    tune_and_publish(job, model, compact=[model])
    (job.out / "student.json").write_text(canonical_json(facts), encoding="utf-8")
    job.summary |= {"target": target}
