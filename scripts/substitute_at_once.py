"""Replace all blocks of a step at once, with or without a curriculum, and fine-tune."""

from functools import partial
from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_config, load_model
    from iskd.models.planning import chooses, requested_sizes
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import AtOnceSettings, SizeRequest
    from iskd.training.parts import Budget, substitute_parts
    from iskd.training.publishing import publish_model
    from iskd.training.steps import substitute_at_once

    config, request = load_config(job.folder("teacher")), SizeRequest.of(job.params["sizes"])
    step = int(job.wildcards["step"])
    if chooses(request):
        budget, whole = Budget.of(config, request, step), load_model(job.folder("teacher"))
        substitute = partial(substitute_parts, whole, budget=budget, known={}, first=1)
    else:
        substitute = partial(substitute_at_once, sizes=requested_sizes(config, request))
    done = substitute(
        teacher=lambda: load_model(job.folder("teacher")),
        corpus=load_sequences(Path(job.inputs["train"])),
        settings=AtOnceSettings.of(job.params),
        step=step,
        seed=job.seed,
        recorded=job.folders("answers"),
        work=job.work,
    )
    publish_model(job, done.model, done.history)
    (job.out / "substitution.json").write_text(canonical_json(done.facts), encoding="utf-8")
    changed = done.facts.get("blocks") or [row["block"] for row in done.facts["changes"]]
    job.summary |= {"blocks": sorted(set(changed))}
