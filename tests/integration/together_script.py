"""A rule's script, for tests of jobs that run in several processes."""

from typing import TYPE_CHECKING, Any

from iskd.runtime.job import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    import json
    import os
    import signal
    import time

    import torch
    from safetensors.torch import save_file

    from iskd.errors import UserError
    from iskd.runtime.distributed import world
    from iskd.training.objectives import next_token_loss
    from tests.integration import together

    fault = job.params.get("fault", {})
    mine = fault.get("process") in (None, world().rank)
    calls = 0

    def objective(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Give the loss; at one step, meet with what the test is about."""
        global calls  # noqa: PLW0603 - a script's variable
        calls += 1
        # The first call counts FLOPs.
        if fault and mine and calls == fault["step"] + 2:
            if "signal" in fault:
                os.kill(os.getpid(), signal.Signals[fault["signal"]])
            elif fault["error"] == "mistake":
                raise UserError("corpus: too\nshort")
            elif fault["error"] == "failure":
                raise ZeroDivisionError("by nought")
            else:
                job.log.info("waiting")
                handler: Any = signal.getsignal(signal.SIGTERM)
                while not handler.__self__.signal_name:  # the training's own handler
                    time.sleep(0.1)
        return next_token_loss(model, batch)

    if "cases" in job.params:
        results = {case: together.CASES[case]() for case in job.params["cases"]}
    else:
        results = {"with_dropout": together.with_dropout(job.work, objective)}
    if world().first:
        for case, (weights, history) in results.items():
            own = {name: value.contiguous().clone() for name, value in weights.items()}
            save_file(own, job.out / f"{case}.safetensors")
            (job.out / f"{case}.json").write_text(json.dumps(history, sort_keys=True))
            job.summary[case] = history[-1]["loss"]
