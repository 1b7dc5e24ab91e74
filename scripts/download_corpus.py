"""Fetch a corpus from the hub at its pinned or locked commit (needs a network)."""

from iskd.runtime.job import run_rule

with run_rule(network=True) as job:
    from iskd.data.hub import fetch_texts, locked_revision
    from iskd.data.texts import write_texts

    commit = locked_revision(
        job.params["dataset"], "dataset", job.params["revision"], job.top / job.params["lock"]
    )
    texts = fetch_texts(job.params["dataset"], job.params["split"], commit, job.params["rows"])
    write_texts(texts, job.out / "texts.jsonl")
    job.summary |= {"dataset": job.params["dataset"], "commit": commit}
