"""Make a text beside the corpus: stories of the embedded world, with other words or its own."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.texts import write_texts
    from iskd.data.toyworld.elsewhere import other_stories

    stories = other_stories(
        job.seed, job.params["stories"], other_words=job.params["words"] == "other"
    )
    write_texts(stories, job.out / "texts.jsonl")
    job.summary |= {"stories": len(stories)}
