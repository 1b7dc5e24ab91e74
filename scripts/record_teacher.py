"""Record what the teacher says about the sequences of one step, for all arms that ask for it."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_model
    from iskd.settings import RecordingSettings
    from iskd.training.recording import record

    about = record(
        lambda: load_model(job.folder("teacher")),
        load_sequences(Path(job.inputs["train"])),
        RecordingSettings.of(job.params),
        step=int(job.wildcards["step"]),
        seed=job.seed,
        earlier=job.folders("earlier"),
        out=job.out,
        work=job.work,
    )
    job.summary |= {name: about[name] for name in ("sequences", "positions", "flops")}
