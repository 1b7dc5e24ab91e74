"""Fetch a task's rows from the hub at their pinned or locked commit (needs a network)."""

from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake, network=True) as job:
    from iskd.data.hub import fetch_rows, locked_revision
    from iskd.data.rows import write_rows

    spec = job.params["spec"]
    commit = locked_revision(
        spec["dataset"], "dataset", spec["revision"], job.top / job.params["lock"]
    )
    job.summary |= {"dataset": spec["dataset"], "commit": commit}
    for part, split in (("rows", spec["split"]), ("examples", spec["examples"])):
        rows = (
            list(fetch_rows(spec["dataset"], spec["config"], split, commit, None)) if split else []
        )
        write_rows(job.out / f"{part}.jsonl", rows)
        job.summary[part] = len(rows)
