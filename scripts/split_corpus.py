"""Split a corpus of stories into those to train on and those held out."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.texts import read_texts, split_texts, write_texts

    texts = [text for file in job.inputs["texts"] for text in read_texts(Path(file))]
    train, heldout = split_texts(texts[: job.params["rows"]], job.params["heldout_share"], job.seed)
    write_texts(train, job.out / "train.jsonl")
    write_texts(heldout, job.out / "heldout.jsonl")
    job.summary |= {"train_stories": len(train), "heldout_stories": len(heldout)}
