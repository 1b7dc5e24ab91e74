"""Fetch a task's rows from the hub at their pinned or locked commit (needs a network)."""

from iskd.runtime.job import run_rule

with run_rule(network=True) as job:
    from iskd.data.hub import fetch_rows, locked_revision
    from iskd.data.rows import write_rows

    commit = locked_revision(
        job.params["dataset"], "dataset", job.params["revision"], job.top / job.params["lock"]
    )
    job.summary |= {"dataset": job.params["dataset"], "commit": commit}
    for part, split in (("rows", job.params["split"]), ("examples", job.params["examples"])):
        rows = (
            list(fetch_rows(job.params["dataset"], job.params["config"], split, commit, None))
            if split
            else []
        )
        write_rows(job.out / f"{part}.jsonl", rows)
        job.summary[part] = len(rows)
