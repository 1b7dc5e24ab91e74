"""Mix the corpus's training sequences with those of texts beside it, in given shares."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences, mixed_sequences, save_sequences

    shares = job.params["mix"]
    files = [job.inputs["own"], *job.inputs["others"]]
    own = 1 - sum(shares.values())
    parts = zip(files, [own, *shares.values()], strict=True)
    mixed = mixed_sequences([(load_sequences(Path(file)), share) for file, share in parts])
    save_sequences(mixed, job.out / "train.safetensors")
    job.summary |= {"train_tokens": mixed.numel()}
