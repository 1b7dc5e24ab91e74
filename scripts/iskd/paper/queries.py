"""What several figures, tables or pages look up in `metrics.csv`."""

from collections.abc import Mapping

import pandas as pd

from iskd.errors import UserError
from iskd.paper.measures import CHANCE, HELDOUT, measure
from iskd.paper.metrics import read_metrics

MODEL = ["study", "teacher", "arm", "step"]
"""The columns that name a model, all seeds together."""


def headline_panels(metrics: pd.DataFrame, headline: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the (task, metric) pairs to show: those of `headline` in its order, then the loss.

    The held-out loss is shown wherever it was measured, whether `headline` names it or not.

    Raises:
        UserError: the headline is empty, or names a metric that is unknown or was not measured.
    """
    pairs = list(zip(metrics["task"], metrics["metric"], strict=True))
    measured = set(pairs)
    panels = [(task, metric) for task, metric in headline.items() if task != HELDOUT[0]]
    if HELDOUT[0] in headline and headline[HELDOUT[0]] != HELDOUT[1]:
        raise UserError(f"headline: the metric of {HELDOUT[0]!r} is {HELDOUT[1]!r}")
    if HELDOUT in measured or HELDOUT[0] in headline:
        panels.append(HELDOUT)
    if not panels:
        raise UserError("headline: name at least one task and its metric")
    for task, metric in panels:
        measure(metric)
        if (task, metric) not in measured:
            known = ", ".join(sorted({m for t, m in measured if t == task})) or "nothing"
            raise UserError(f"headline: {task}/{metric} was not measured; for {task}: {known}")
    return panels


def check_chance(chance: Mapping[str, float]) -> None:
    """Check that every chance level is a fraction from 0 up to but not including 1.

    Raises:
        UserError: one is not, for example a percentage.
    """
    for task, level in chance.items():
        if not 0 <= level < 1:
            raise UserError(f"chance: {task} has {level}; it must be a fraction, as 0.25 for 25 %")


def aggregate(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per study, teacher, arm, step, task and metric: the mean over seeds.

    Takes a frame of `tidy`. Columns added to the keys: `reduction` and `value` (means), `seeds`
    (how many runs went in), `spread_of`, `spread`, `low`, `high`. With several runs `spread_of` is
    "seeds", `spread` the standard deviation (n - 1) over them, and `low` and `high` the smallest
    and largest value; with one run it is "items", `spread` the standard error over the task's
    items, and `low` and `high` the ends of the row's 95 % interval. What is not known is NaN;
    `spread_of` is empty where neither is.
    """
    keys = ["study", "teacher", "arm", "step", "task", "metric"]
    groups = metrics.groupby(keys, sort=True)
    table = groups.agg(
        reduction=("reduction", "mean"),
        value=("value", "mean"),
        seeds=("value", "size"),
        spread=("value", "std"),
        least=("value", "min"),
        most=("value", "max"),
        stderr=("stderr", "first"),
        low=("low", "first"),
        high=("high", "first"),
    ).reset_index()
    single = table["seeds"] == 1
    table["spread"] = table["stderr"].where(single, table["spread"])
    table["low"] = table["low"].where(single, table["least"])
    table["high"] = table["high"].where(single, table["most"])
    # The mean of equal numbers can miss them by a last bit.
    table["value"] = table["value"].clip(table["least"], table["most"])
    known = table["spread"].notna() | table["low"].notna()
    kind = pd.Series("seeds", index=table.index, dtype="str")
    kind = kind.where(~single, "items").where(known, "")
    columns = ["reduction", "value", "seeds", "spread_of", "spread", "low", "high"]
    return table.assign(spread_of=kind)[[*keys, *columns]]


def reductions_of(metrics: pd.DataFrame) -> dict[tuple[str, str, int | None, int], float]:
    """Give the reduction of every model of a frame of `tidy`, by teacher, arm, seed and step."""
    names = ["teacher", "arm", "seed", "step"]
    models = metrics[[*names, "reduction"]].drop_duplicates(names)
    return {
        (teacher, arm, None if pd.isna(seed) else int(seed), int(step)): float(reduction)
        for teacher, arm, seed, step, reduction in models.itertuples(index=False, name=None)
    }


def chance_levels(metrics: pd.DataFrame) -> dict[str, float]:
    """Give the score of guessing by task, for those in which something can be guessed."""
    rows = metrics[metrics["metric"] == CHANCE].drop_duplicates("task")
    return dict(zip(rows["task"], rows["value"], strict=True))


def other_texts(metrics: pd.DataFrame, headline: Mapping[str, str]) -> list[tuple[str, str]]:
    """List the losses on texts beside the corpus, in the table's order: what was forgotten."""
    losses = metrics.loc[metrics["metric"] == HELDOUT[1], "task"]
    return [
        (task, HELDOUT[1])
        for task in dict.fromkeys(losses)
        if task != HELDOUT[0] and task not in headline
    ]


def read_reported(path: str, headline_step: Mapping[str, int]) -> pd.DataFrame:
    """Read what tables report of a file of metrics: the steps of `at_headline`."""
    return at_headline(read_metrics(path), headline_step)


def at_headline(metrics: pd.DataFrame, headline_step: Mapping[str, int]) -> pd.DataFrame:
    """Leave out the steps after the one that the tables report, per teacher."""
    return metrics[metrics["step"] <= metrics["teacher"].map(headline_step)]


def rows_of(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Pick the rows of one task and metric."""
    return table[(table["task"] == task) & (table["metric"] == metric)]
