"""Take in a teacher from a local folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.models.folder import adopt_model

    spec = job.params["spec"]
    for file in job.inputs["model"]:
        shutil.copyfile(file, job.out / Path(file).name)
    parameters = adopt_model(job.out, family=spec["family"], blocks=spec["blocks"])
    job.summary |= {"folder": spec["folder"], "parameters": parameters}
