"""Write what each arm needs: parameters, memory and speed, beside its teacher."""

from pathlib import Path
from typing import TYPE_CHECKING

from iskd.rule import run_rule

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with run_rule(snakemake) as job:
    from iskd.paper.metrics import read_metrics
    from iskd.paper.queries import at_headline
    from iskd.paper.resources import EFFICIENCY_NOTE, efficiency_table, save_efficiency

    spec = job.params["spec"]
    tables = [
        at_headline(read_metrics(Path(job.inputs[name])), spec["headline_step"])
        for name in ("metrics", "measurements")
    ]
    caption = f"Study {spec['study']}: size, memory and speed. {EFFICIENCY_NOTE}"
    save_efficiency(
        efficiency_table(*tables),
        job.out / "efficiency",
        caption,
        f"tab:{spec['study']}-efficiency",
    )
