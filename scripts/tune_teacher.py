"""The control: the whole teacher, tuned on the tokens that the reference was tuned on."""

from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.baselines.tuning import tune_and_publish
    from iskd.models.folder import load_model

    tune_and_publish(job, load_model(job.folder("teacher")))
