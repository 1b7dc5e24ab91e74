"""Cut a text beside the corpus into token sequences, with one teacher's tokenizer."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import save_sequences, story_sequences
    from iskd.data.texts import draw_texts, read_texts
    from iskd.errors import UserError
    from iskd.models.folder import load_tokenizer

    name = job.wildcards["text"]
    texts = [text for file in job.inputs["texts"] for text in read_texts(Path(file))]
    drawn = draw_texts(texts, job.params["rows"], job.seed)
    tokenizer = load_tokenizer(job.folder("tokenizer"))
    try:
        sequences, stories = story_sequences(drawn, tokenizer, job.params["block_length"])
    except UserError as error:
        raise UserError(f"texts.{name}: {error}") from None
    save_sequences(sequences, job.out / "blocks.safetensors", stories)
    job.summary |= {"texts": len(drawn), "tokens": sequences.numel()}
