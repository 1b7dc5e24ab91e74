"""Write what each arm cost: tokens, FLOPs, device hours, energy."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import at_headline
    from iskd.paper.resources import COSTS_NOTE, costs_table, save_costs

    spec = job.params["spec"]
    tables = [
        at_headline(read_metrics(Path(job.inputs[name])), spec["headline_step"])
        for name in ("metrics", "measurements")
    ]
    caption = f"Study {spec['study']}: what the arms cost. {COSTS_NOTE}"
    save_costs(costs_table(*tables), job.out / "costs", caption, f"tab:{spec['study']}-costs")
