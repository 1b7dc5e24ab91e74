"""Cut a corpus into token sequences of fixed length, with one teacher's tokenizer."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import save_sequences, story_sequences
    from iskd.data.texts import read_texts
    from iskd.models.folder import load_tokenizer

    tokenizer = load_tokenizer(job.folder("tokenizer"))
    for part in ("train", "heldout"):
        texts = read_texts(Path(job.inputs[part]))
        sequences, stories = story_sequences(texts, tokenizer, job.params["block_length"])
        # What is measured on held-out sequences is not independent within a story.
        known = stories if part == "heldout" else None
        save_sequences(sequences, job.out / f"{part}.safetensors", known)
        job.summary[f"{part}_tokens"] = sequences.numel()
