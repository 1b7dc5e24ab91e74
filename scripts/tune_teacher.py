"""The control: the whole teacher, tuned on the tokens that the reference was tuned on."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.baselines.tuning import tune_and_publish
    from iskd.models.folder import load_model

    tune_and_publish(job, load_model(job.folder("teacher")))
