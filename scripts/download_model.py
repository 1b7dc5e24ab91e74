"""Fetch a teacher from the hub at its pinned or locked commit (needs a network)."""

from iskd.runtime.job import run_rule

with run_rule(network=True) as job:
    from iskd.data.hub import fetch_model, locked_revision
    from iskd.models.folder import adopt_model

    commit = locked_revision(
        job.params["model"], "model", job.params["revision"], job.top / job.params["lock"]
    )
    fetch_model(job.params["model"], commit, job.out)
    parameters = adopt_model(job.out, family=job.params["family"], blocks=job.params["blocks"])
    job.summary |= {"model": job.params["model"], "commit": commit, "parameters": parameters}
