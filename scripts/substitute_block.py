"""Replace one block by a compact one and fine-tune: one step of ISKD."""

import json
from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_config, load_model, load_to_train
    from iskd.models.planning import chooses, parameters_after, requested_sizes
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest, StepSettings
    from iskd.training.parts import Budget, substitute_parts
    from iskd.training.publishing import publish_model
    from iskd.training.steps import substitute_block

    step = int(job.wildcards["step"])
    config = load_config(job.folder("teacher"))
    request = SizeRequest.of(job.params["sizes"])
    previous = load_to_train(job.folder("previous"))
    corpus = load_sequences(Path(job.inputs["train"]))
    settings = StepSettings.of(job.params)
    if chooses(request):
        before = job.folder("previous") / "substitution.json"
        done = substitute_parts(
            previous,
            lambda: load_model(job.folder("teacher")),
            Budget(
                parameters_after(config, request, step),
                exact=step == request.replaced,
                changes=request.changes or (),
            ),
            corpus,
            settings,
            known=json.loads(before.read_text(encoding="utf-8"))["scores"] if step > 1 else {},
            step=step,
            seed=job.seed,
            recorded=job.folders("answers"),
            work=job.work,
        )
    else:
        done = substitute_block(
            previous,
            lambda: load_model(job.folder("teacher")),
            requested_sizes(config, request),
            corpus,
            settings,
            step=step,
            seed=job.seed,
            recorded=job.folders("answers"),
            work=job.work,
        )
    publish_model(job, done.model, done.history)
    (job.out / "substitution.json").write_text(canonical_json(done.facts), encoding="utf-8")
    job.summary |= {"block": done.facts["block"]}
