"""Fetch a text beside the corpus at its pinned or locked commit (needs a network)."""

from iskd.runtime.job import run_rule

with run_rule(network=True) as job:
    from iskd.data.hub import fetch_texts, locked_revision
    from iskd.data.texts import write_texts

    commit = locked_revision(
        job.params["dataset"], "dataset", job.params["revision"], job.top / job.params["lock"]
    )
    texts = fetch_texts(
        job.params["dataset"], job.params["split"], commit, None, job.params["config"]
    )
    write_texts(texts, job.out / "texts.jsonl")
    job.summary |= {"dataset": job.params["dataset"], "commit": commit}
