"""What each arm lost, beside what that cost."""

from collections.abc import Mapping

import pandas as pd

from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.main_table import main_table
from iskd.paper.measures import HELDOUT
from iskd.paper.metrics import tidy
from iskd.paper.queries import MODEL, aggregate, rows_of

ABLATION_NOTE = (
    "Gap: held-out loss above the teacher's. Closed: share of the gap of {baseline} that is not "
    "there. ± is one standard deviation over seeds where there are several, otherwise one standard "
    "error over the task's items. Tokens and training FLOPs (forward, backward and the teacher's) "
    "are what was spent since the teacher, but for looking for a measured order and fitting a "
    "start; FLOPs/token are those of a forward pass."
)
"""What the columns of `ablation_table` mean, with the baseline's name to fill in."""


def ablation_table(
    metrics: pd.DataFrame, headline: Mapping[str, str], baseline: str | None
) -> pd.DataFrame:
    """Return what each arm lost at its last step, what that cost, and whom it beats.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show.
        baseline: the arm whose gap to the teacher is the measure; None for none.

    Returns:
        Rows as in `main_table`, but within each teacher by their held-out loss. Columns study,
        teacher, arm, step, seeds, parameters, reduction, `heldout/loss` with spread, gap (nats per
        token), closed (a fraction: 1 - gap / baseline's gap), for each task
        `<task>/<metric>` with spread, tokens, training_flops, flops_per_token.
    """
    main = main_table(metrics, headline, {})
    table = aggregate(tidy(metrics))
    loss = "/".join(HELDOUT)
    own = main[main["arm"] == TEACHER_ARM].set_index(["study", "teacher"])[loss]
    keys = list(zip(main["study"], main["teacher"], strict=True))
    main["gap"] = main[loss] - [own[key] for key in keys]
    base = main[main["arm"] == baseline].set_index(["study", "teacher"])["gap"]
    main["closed"] = [
        1 - gap / base[key] if key in base.index else float("nan")
        for key, gap in zip(keys, main["gap"], strict=True)
    ]
    for name, task, metric in (
        ("tokens", "training", "tokens"),
        ("training_flops", "training", "flops"),
        ("flops_per_token", "model", "flops_per_token"),
    ):
        values = rows_of(table, task, metric)[[*MODEL, "value"]].rename(columns={"value": name})
        main = main.merge(values, on=MODEL, how="left")
    main["tokens"] = main["tokens"].astype("Int64")
    scores = [c for c in main.columns if "/" in c and "retention" not in c]
    order = [*MODEL, "seeds", "parameters", "reduction"]
    order += [c for c in scores if c.startswith(loss)] + ["gap", "closed"]
    order += [c for c in scores if not c.startswith(loss)]
    order += ["tokens", "training_flops", "flops_per_token"]
    return main.sort_values(["study", "teacher", loss], ignore_index=True, kind="stable")[order]
