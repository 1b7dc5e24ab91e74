"""Make the embedded world: stories to train on, held-out stories, and the two tasks' rows."""

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.rows import write_rows
    from iskd.data.texts import write_texts
    from iskd.data.toyworld import make_toyworld

    world = make_toyworld(seed=job.seed, **job.params["world"])
    write_texts(world.train, job.out / "train.jsonl")
    write_texts(world.heldout, job.out / "heldout.jsonl")
    write_rows(job.out / "cbt.jsonl", world.cbt)
    write_rows(job.out / "hellaswag.jsonl", world.hellaswag)
    job.summary |= {"train_stories": len(world.train), "heldout_stories": len(world.heldout)}
