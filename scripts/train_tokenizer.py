"""Train a teacher's own byte-level BPE tokenizer on the training stories."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import train_tokenizer
    from iskd.data.texts import read_texts

    texts = read_texts(Path(job.inputs["train"]))
    tokenizer = train_tokenizer(texts, job.params["vocabulary"], job.params["positions"])
    tokenizer.save_pretrained(job.out)
    job.summary |= {"vocabulary": len(tokenizer)}
