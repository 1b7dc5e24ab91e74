"""Put all of the paper's files into one zip."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.paper.bundle import write_bundle

    files = dict(zip(job.params["names"], map(Path, job.inputs["files"]), strict=True))
    write_bundle(files, job.params["study"], job.out / "paper.zip")
    job.summary |= {"files": len(files)}
