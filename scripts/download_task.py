"""Fetch a task's rows from the hub at their pinned or locked commit (needs a network)."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake, network=True) as job:
    from iskd.data.hub import fetch_rows, locked_revision
    from iskd.data.rows import write_rows

    spec = job.params["spec"]
    commit = locked_revision(spec["dataset"], "dataset", spec["revision"], Path(job.params["lock"]))
    rows = list(fetch_rows(spec["dataset"], spec["config"], spec["split"], commit, None))
    write_rows(job.out / "rows.jsonl", rows)
    job.summary |= {"dataset": spec["dataset"], "commit": commit, "rows": len(rows)}
