"""What each arm keeps of its teacher, beside what is claimed."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iskd.errors import UserError
from iskd.evaluation.kinds import GOLD
from iskd.evaluation.results import TEACHER_ARM
from iskd.evaluation.retention import corrected_retention, retention
from iskd.paper.measures import PARAMETERS, measure
from iskd.paper.metrics import tidy
from iskd.paper.queries import MODEL, aggregate, check_chance, headline_panels, other_texts, rows_of
from iskd.paper.tables import CLAIMED, in_order

MAIN_TABLE_NOTE = (
    "Kept: score / teacher's score. Margin: (score - chance) / (teacher's score - chance). "
    "± is one standard deviation over seeds where there are several, "
    "otherwise one standard error over the task's items. Brackets span the smallest and the "
    "largest seed where there are several, otherwise they are a 95 % interval over the task's "
    "items, paired with the teacher's."
)
"""What the columns of `main_table` mean; a caption may end with it."""

BESIDE = (("choices", GOLD), ("generation", "teacher_loss"), ("generation", "distinct_3"))
"""What stands in the table behind all losses: bits per byte of right answers, mean over tasks, and
whether a model still writes: what its teacher thinks of it, and how seldom it repeats itself."""

# The rows of metrics.csv that hold the intervals of what is kept.
_INTERVALS_OF = {"retention": "retention", "corrected_retention": "margin"}


def main_table(
    metrics: pd.DataFrame,
    headline: Mapping[str, str],
    chance: Mapping[str, float],
    *,
    claims: Sequence[Mapping[str, Any]] = (),
) -> pd.DataFrame:
    """Return what each arm of each teacher keeps at its last step, unrounded.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show, in order; the held-out loss comes last,
                wherever it was measured, behind it the loss on texts beside the corpus, and
            :data:`BESIDE`.
        chance: for some tasks the score of a random choice, a fraction.
        claims: numbers to print beside ours, as the config has them: teacher, task, metric,
            reduction and retention (fractions), source.

    Returns:
        The teacher first, then the arms in the order of `iskd.paper.style.arm_styles`, and for
        each source of claims and reduction a row whose arm is `CLAIMED`. Columns study, teacher,
        arm, step, seeds, parameters, reduction (a fraction), then for each task `<task>/<metric>`
        (mean over seeds, in the unit of metrics.csv), `.../spread` and `.../spread_of` as in
        `iskd.paper.queries.aggregate`, and for scores that grow with quality `.../retention` and,
        where chance is known, `.../corrected_retention` (fractions), each with the ends of its
        interval, `.../retention_low` and `.../retention_high`. What was not measured is missing.

    Raises:
        UserError: a headline metric is not in the table, a teacher was not measured itself, or a
            chance level is wrong.
    """
    check_chance(chance)
    checked = tidy(metrics)
    table = aggregate(checked)
    panels = _with_claimed(headline_panels(checked, headline), checked, claims)
    panels += other_texts(checked, headline)
    measured = set(zip(checked["task"], checked["metric"], strict=True))
    panels += [panel for panel in BESIDE if panel in measured]
    # Not every task need be run with every seed: the column says how many seeds there are at most.
    frame = table.groupby(MODEL, as_index=False)[["seeds", "reduction"]].max()
    sizes = rows_of(table, *PARAMETERS)[[*MODEL, "value"]]
    frame = frame.merge(sizes.rename(columns={"value": "parameters"}), on=MODEL, how="left")
    last = frame.groupby(MODEL[:3])["step"].transform("max")
    frame = frame[frame["step"] == last]
    for task, metric in panels:
        frame = _with_score(frame, table, task, metric, chance.get(task))
    frame = in_order(frame)
    whole = {"step": "Int64", "seeds": "Int64"}
    if (frame["parameters"].dropna() % 1 == 0).all():
        whole["parameters"] = "Int64"
    order_of_columns = [*MODEL, "seeds", "parameters", "reduction"]
    tasks = [name for name in frame.columns if "/" in name]
    return _with_claims(frame[order_of_columns + tasks].astype(whole), claims)


def _with_claimed(
    panels: list[tuple[str, str]], metrics: pd.DataFrame, claims: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Add the metrics that claims are about, each behind its task's headline metric."""
    measured = set(zip(metrics["task"], metrics["metric"], strict=True))
    claimed = list(dict.fromkeys((claim["task"], claim["metric"]) for claim in claims))
    found: list[tuple[str, str]] = []
    for task, metric in panels:
        more = [c for c in claimed if c[0] == task and c in measured and c not in panels]
        found += [(task, metric), *more]
    return found


def _with_score(
    frame: pd.DataFrame, table: pd.DataFrame, task: str, metric: str, level: float | None
) -> pd.DataFrame:
    name = f"{task}/{metric}"
    columns = {key: f"{name}/{key}" for key in ("spread", "spread_of")} | {"value": name}
    values = rows_of(table, task, metric)[[*MODEL, "value", "spread", "spread_of"]]
    frame = frame.merge(values.rename(columns=columns), on=MODEL, how="left")
    frame[columns["spread_of"]] = frame[columns["spread_of"]].fillna("")
    if not measure(metric).higher_is_better or (task, metric) in BESIDE:
        return frame
    _add_retention(frame, values, name, level)
    for kind, suffix in _INTERVALS_OF.items():
        if f"{name}/{kind}" not in frame:
            continue
        ends = {key: f"{name}/{kind}_{key}" for key in ("low", "high")}
        rows = rows_of(table, task, f"{metric}_{suffix}")[[*MODEL, *ends]]
        frame = frame.merge(rows.rename(columns=ends), on=MODEL, how="left")
    return frame


def _with_claims(frame: pd.DataFrame, claims: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Add a row for what each source claims about a teacher at one reduction."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    studies = dict(zip(frame["teacher"], frame["study"], strict=True))
    for claim in claims:
        name = f"{claim['task']}/{claim['metric']}/retention"
        teacher = claim["teacher"]
        if teacher not in studies or name not in frame:
            continue
        key = (teacher, claim["source"], claim["reduction"])
        row = {"study": studies[teacher], "teacher": teacher, "arm": CLAIMED}
        row = rows.setdefault(key, row | {"reduction": claim["reduction"]})
        row[name] = claim["retention"]
    if not rows:
        return frame
    more = pd.DataFrame(list(rows.values())).reindex(columns=frame.columns)
    for column in [name for name in frame.columns if name.endswith("/spread_of")]:
        more[column] = ""
    joined = pd.concat([frame, more.astype(frame.dtypes)], ignore_index=True)
    return joined.sort_values(["study", "teacher"], ignore_index=True, kind="stable")


def _add_retention(
    frame: pd.DataFrame, values: pd.DataFrame, name: str, level: float | None
) -> None:
    own = values[values["arm"] == TEACHER_ARM]
    teachers = dict(zip(zip(own["study"], own["teacher"], strict=True), own["value"], strict=True))
    bases = []
    for key in zip(frame["study"], frame["teacher"], strict=True):
        if key not in teachers:
            raise UserError(f"metrics: {name} was not measured for the teacher {key[1]} itself")
        bases.append(teachers[key])
    pairs = list(zip(frame[name], bases, strict=True))
    frame[f"{name}/retention"] = [retention(score, base) for score, base in pairs]
    if level is not None:
        frame[f"{name}/corrected_retention"] = [
            corrected_retention(score, base, level) for score, base in pairs
        ]
