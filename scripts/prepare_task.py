"""Put a task's rows into one file, wherever they come from, drawn from the seed."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.cloze import cloze_rows
    from iskd.data.row_kinds import read_rows
    from iskd.data.rows import read_any_rows, sample_rows, write_rows
    from iskd.data.texts import read_texts

    source = Path(job.inputs["rows"])
    if job.params["source"] == "heldout":
        rows = cloze_rows(read_texts(source), job.params["rows"], job.seed)
    else:
        rows = (
            read_any_rows(source) if job.params["stock"] else read_rows(source, job.params["kind"])
        )
        rows = sample_rows(rows, job.params["rows"] or len(rows), job.seed)
    write_rows(job.out / "rows.jsonl", rows)
    job.summary |= {"rows": len(rows)}
