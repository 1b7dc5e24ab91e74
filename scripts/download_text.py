"""Fetch a text beside the corpus at its pinned or locked commit (needs a network)."""

from typing import TYPE_CHECKING

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake, network=True) as job:
    from iskd.data.hub import fetch_texts, locked_revision
    from iskd.data.texts import write_texts

    spec = job.params["spec"]
    commit = locked_revision(
        spec["dataset"], "dataset", spec["revision"], job.top / job.params["lock"]
    )
    texts = fetch_texts(spec["dataset"], spec["split"], commit, None, spec["config"])
    write_texts(texts, job.out / "texts.jsonl")
    job.summary |= {"dataset": spec["dataset"], "commit": commit}
