"""Fetch a finished model that is evaluated as it is, at its pinned or locked commit."""

from iskd.runtime.job import run_rule

with run_rule(network=True) as job:
    from iskd.data.hub import fetch_model, locked_revision
    from iskd.models.folder import adopt_reference

    commit = locked_revision(
        job.params["model"], "model", job.params["revision"], job.top / job.params["lock"]
    )
    fetch_model(job.params["model"], commit, job.out)
    parameters = adopt_reference(job.out, teacher=job.folder("teacher"))
    job.summary |= {"model": job.params["model"], "commit": commit, "parameters": parameters}
