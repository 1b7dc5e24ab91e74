"""The main table and the ablation: raw numbers in a frame, and the same rounded for readers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.evaluation.retention import corrected_retention, retention
from iskd.paper.columns import Column
from iskd.paper.formats import (
    MISSING,
    SHARE,
    Quantity,
    fixed,
    quantity,
    with_interval,
    with_spread,
)
from iskd.paper.layout import save_columns
from iskd.paper.metrics import (
    HELDOUT,
    MEASURES,
    PARAMETERS,
    aggregate,
    check_chance,
    headline_panels,
    measure,
    tidy,
)
from iskd.paper.style import arm_styles, in_arm_order, task_title

CLAIMED = "(claimed)"
"""What the column `arm` says in a row of claimed numbers; no arm can have this name."""

MAIN_TABLE_NOTE = (
    "Kept: score / teacher's score. Margin: (score - chance) / (teacher's score - chance). "
    "± is one standard deviation over seeds where there are several, "
    "otherwise one standard error over the task's items. Brackets span the smallest and the "
    "largest seed where there are several, otherwise they are a 95 % interval over the task's "
    "items, paired with the teacher's."
)
"""What the columns of `main_table` mean; a caption may end with it."""

MODEL = ["study", "teacher", "arm", "step"]
"""The columns that name a model, all seeds together."""

_IDENTITY = {
    "study": "Study",
    "teacher": "Teacher",
    "arm": "Arm",
    "step": "Step",
    "seeds": "Seeds",
    "parameters": "Parameters",
    "reduction": "Reduction",
    "gap": "Gap (nats/token)",
    "closed": "Closed",
    "tokens": "Tokens",
    "training_flops": "Training FLOPs",
    "flops_per_token": "FLOPs/token",
}
_KEYS = ("study", "teacher", "arm", "step")
_PERCENT = ("reduction", "closed")
_SCIENTIFIC = Quantity("", scientific=True)
_SCIENTIFIC_COLUMNS = ("training_flops", "flops_per_token")
_RETENTIONS = {"retention": "kept", "corrected_retention": "margin"}
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
            wherever it was measured, and behind it the loss on texts beside the corpus.
        chance: for some tasks the score of a random choice, a fraction.
        claims: numbers to print beside ours, as the config has them: teacher, task, metric,
            reduction and retention (fractions), source.

    Returns:
        The teacher first, then the arms in the order of `iskd.paper.style.arm_styles`, and for
        each source of claims and reduction a row whose arm is `CLAIMED`. Columns study, teacher,
        arm, step, seeds, parameters, reduction (a fraction), then for each task `<task>/<metric>`
        (mean over seeds, in the unit of metrics.csv), `.../spread` and `.../spread_of` as in
        `iskd.paper.metrics.aggregate`, and for scores that grow with quality `.../retention` and,
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
    # Not every task need be run with every seed: the column says how many seeds there are at most.
    frame = table.groupby(MODEL, as_index=False)[["seeds", "reduction"]].max()
    sizes = values_of(table, *PARAMETERS)[[*MODEL, "value"]]
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


def other_texts(metrics: pd.DataFrame, headline: Mapping[str, str]) -> list[tuple[str, str]]:
    """List the losses on texts beside the corpus, in the table's order: what was forgotten."""
    losses = metrics.loc[metrics["metric"] == HELDOUT[1], "task"]
    return [
        (task, HELDOUT[1])
        for task in dict.fromkeys(losses)
        if task != HELDOUT[0] and task not in headline
    ]


def at_headline(metrics: pd.DataFrame, headline_step: Mapping[str, int]) -> pd.DataFrame:
    """Leave out the steps after the one that the tables report, per teacher."""
    return metrics[metrics["step"] <= metrics["teacher"].map(headline_step)]


def values_of(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Pick the rows of one metric."""
    return table[(table["task"] == task) & (table["metric"] == metric)]


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by study and teacher, arms as `iskd.paper.style.arm_styles` lists them, and step.

    Rows of one model keep their order.
    """
    return in_arm_order(frame, "study", "teacher", "arm", "step")


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
    values = values_of(table, task, metric)[[*MODEL, "value", "spread", "spread_of"]]
    frame = frame.merge(values.rename(columns=columns), on=MODEL, how="left")
    frame[columns["spread_of"]] = frame[columns["spread_of"]].fillna("")
    if not measure(metric).higher_is_better:
        return frame
    _add_retention(frame, values, name, level)
    for kind, suffix in _INTERVALS_OF.items():
        if f"{name}/{kind}" not in frame:
            continue
        ends = {key: f"{name}/{kind}_{key}" for key in ("low", "high")}
        rows = values_of(table, task, f"{metric}_{suffix}")[[*MODEL, *ends]]
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
        values = values_of(table, task, metric)[[*MODEL, "value"]].rename(columns={"value": name})
        main = main.merge(values, on=MODEL, how="left")
    main["tokens"] = main["tokens"].astype("Int64")
    scores = [c for c in main.columns if "/" in c and "retention" not in c]
    order = [*MODEL, "seeds", "parameters", "reduction"]
    order += [c for c in scores if c.startswith(loss)] + ["gap", "closed"]
    order += [c for c in scores if not c.startswith(loss)]
    order += ["tokens", "training_flops", "flops_per_token"]
    return main.sort_values(["study", "teacher", loss], ignore_index=True, kind="stable")[order]


def save_table(
    frame: pd.DataFrame,
    stem: Path,
    caption: str,
    label: str,
    columns: Iterable[Column] | None = None,
) -> None:
    """Write a table as `<stem>.csv` (raw numbers), `.md`, `.html` and `.tex` (for readers).

    The columns of `main_table` and `ablation_table` get heads of their own and one cell for a score
    and its spread; any other column keeps its name, unless `columns` says how the table reads.

    Args:
        frame: the table; the index is left out.
        stem: the path without its suffix.
        caption: plain text.
        label: the LaTeX label, of letters, digits and ":.-".
        columns: the table for readers.

    Raises:
        UserError: the label has other characters.
    """
    readable = _readable(frame) if columns is None else list(columns)
    # Rows of one teacher belong together; a rule parts them from the next teacher's.
    names = [name for name in ("study", "teacher") if name in frame.columns]
    owners = list(frame[names].itertuples(index=False, name=None)) if names else [()] * len(frame)
    breaks = frozenset(i for i in range(1, len(owners)) if owners[i] != owners[i - 1])
    save_columns(readable, frame, stem, caption, label, breaks=breaks)


def key_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns that say which model a row is about, as far as rows differ in them.

    The frame has study, teacher, arm, step and seeds.
    """
    names = [name for name in (*_KEYS, "seeds") if name not in _hidden(frame)]
    return [_plain_column(frame[name], name) for name in names]


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


def _hidden(frame: pd.DataFrame) -> list[str]:
    """List the columns that would say the same in every row."""
    hidden = [n for n in ("study", "teacher") if n in frame.columns and frame[n].nunique() < 2]
    if "seeds" in frame.columns and not (frame["seeds"] > 1).any():
        hidden.append("seeds")
    return hidden


def _readable(frame: pd.DataFrame) -> list[Column]:
    hidden = _hidden(frame)
    columns = []
    for name in frame.columns:
        task, metric, part = [*name.split("/"), "", ""][:3]
        if name in hidden:
            continue
        if metric not in MEASURES:
            columns.append(_plain_column(frame[name], name))
        elif part in ("", *_RETENTIONS):
            columns.append(_task_column(frame, name, task, metric, part))
    return columns


def _task_column(frame: pd.DataFrame, name: str, task: str, metric: str, part: str) -> Column:
    group = task_title(task)
    # A second metric of the task has a group of its own: both have columns "kept" and "margin".
    same = {n.split("/")[1] for n in frame.columns if n.startswith(f"{task}/")}
    if len(same) > 1:
        group = f"{group}, {measure(metric).short}"
    missing = pd.Series(float("nan"), index=frame.index)
    if part:
        low, high = (frame.get(f"{name}_{end}", missing) for end in ("low", "high"))
        rows = zip(frame[name], low, high, strict=True)
        cells = [with_interval(value, first, last, SHARE) for value, first, last in rows]
        return Column(group, _RETENTIONS[part], "%", cells)
    how = quantity(task, metric)
    spreads = frame.get(f"{name}/spread", missing)
    cells = [with_spread(v, s, how) for v, s in zip(frame[name], spreads, strict=True)]
    return Column(group, measure(metric).short, how.unit, cells)


def _plain_column(values: pd.Series, name: str) -> Column:
    head, key = _IDENTITY.get(name, name), name in _KEYS
    if name == "arm":
        styles = arm_styles(arm for arm in values if arm != CLAIMED)
        cells = ["Claimed" if arm == CLAIMED else styles[arm].label for arm in values]
        return Column("", head, "", cells, is_text=True, is_key=True)
    if name in _SCIENTIFIC_COLUMNS:
        return Column("", head, "", [_SCIENTIFIC.text(value) for value in values])
    if name in _PERCENT:
        return Column("", head, "%", [SHARE.text(value) for value in values])
    if not pd.api.types.is_numeric_dtype(values):
        cells = [MISSING if pd.isna(value) else str(value) for value in values]
        return Column("", head, "", cells, is_text=True, is_key=key)
    decimals = 0 if pd.api.types.is_integer_dtype(values) else 3
    return Column("", head, "", [fixed(value, decimals) for value in values], is_key=key)
