"""Fetch a teacher from the hub at its pinned or locked commit (needs a network)."""

from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake, network=True) as job:
    from iskd.data.hub import fetch_model, locked_revision
    from iskd.models.folder import adopt_model

    spec = job.params["spec"]
    commit = locked_revision(spec["model"], "model", spec["revision"], job.top / job.params["lock"])
    fetch_model(spec["model"], commit, job.out)
    parameters = adopt_model(job.out, family=spec["family"], blocks=spec["blocks"])
    job.summary |= {"model": spec["model"], "commit": commit, "parameters": parameters}
