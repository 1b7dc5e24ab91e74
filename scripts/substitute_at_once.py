"""Replace all blocks of a step at once, with or without a curriculum, and fine-tune."""

from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_config, load_model
    from iskd.models.planning import requested_sizes
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import AtOnceSettings, SizeRequest
    from iskd.training.publishing import publish_model
    from iskd.training.steps import substitute_at_once

    done = substitute_at_once(
        lambda: load_model(job.folder("teacher")),
        requested_sizes(load_config(job.folder("teacher")), SizeRequest.of(job.params["sizes"])),
        load_sequences(Path(job.inputs["train"])),
        AtOnceSettings.of(job.params),
        step=int(job.wildcards["step"]),
        seed=job.seed,
        recorded=job.folders("answers"),
        work=job.work,
    )
    publish_model(job, done.model, done.history)
    (job.out / "substitution.json").write_text(canonical_json(done.facts), encoding="utf-8")
    job.summary |= {"blocks": done.facts["blocks"]}
