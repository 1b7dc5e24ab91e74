"""Replace one block by a compact one and fine-tune: one step of ISKD."""

from functools import partial
from pathlib import Path

from iskd.runtime.job import run_rule

with run_rule() as job:
    from iskd.data.corpus import load_sequences
    from iskd.models.folder import load_config, load_model, load_to_train
    from iskd.models.planning import chooses, requested_sizes
    from iskd.provenance.artifact import canonical_json
    from iskd.settings import SizeRequest, StepSettings
    from iskd.training.parts import SUBSTITUTION, Budget, earlier_scores, substitute_parts
    from iskd.training.publishing import publish_model
    from iskd.training.steps import substitute_block

    config, request = load_config(job.folder("teacher")), SizeRequest.of(job.params["sizes"])
    step = int(job.wildcards["step"])
    if chooses(request):
        budget, known = Budget.of(config, request, step), earlier_scores(job.folder("previous"))
        substitute = partial(substitute_parts, budget=budget, known=known)
    else:
        substitute = partial(substitute_block, sizes=requested_sizes(config, request))
    done = substitute(
        load_to_train(job.folder("previous")),
        lambda: load_model(job.folder("teacher")),
        corpus=load_sequences(Path(job.inputs["train"])),
        settings=StepSettings.of(job.params),
        step=step,
        seed=job.seed,
        recorded=job.folders("answers"),
        work=job.work,
    )
    publish_model(job, done.model, done.history)
    (job.out / SUBSTITUTION).write_text(canonical_json(done.facts), encoding="utf-8")
    job.summary |= {"block": done.facts["block"]}
