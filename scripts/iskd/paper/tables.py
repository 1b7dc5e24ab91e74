"""Tables of the paper: raw numbers in a frame, and the same rounded for readers."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from iskd.errors import UserError
from iskd.paper.metrics import (
    HELDOUT,
    MEASURES,
    PARAMETERS,
    TEACHER_ARM,
    Measure,
    aggregate,
    check_chance,
    corrected_retention,
    csv_text,
    headline_panels,
    measure,
    retention,
    tidy,
)
from iskd.paper.style import arm_styles, task_title

MAIN_TABLE_NOTE = (
    "Kept: score / teacher's score. Margin: (score - chance) / (teacher's score - chance). "
    "± is one standard deviation over seeds where there are several, "
    "otherwise one standard error over the task's items."
)
"""What the columns of `main_table` mean; a caption may end with it."""

_MISSING = "–"
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
_PERCENT = ("reduction", "closed")
_SCIENTIFIC = ("training_flops", "flops_per_token")
_RETENTIONS = {"retention": "kept", "corrected_retention": "margin"}
# With more columns than this a table at footnote size is wider than a page's text.
_FOOTNOTE_COLUMNS = 11
_TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    # Right after the end of a row a bracket would open that row's optional argument.
    "[": "{[}",
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
}
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def main_table(
    metrics: pd.DataFrame,
    headline: Mapping[str, str],
    chance: Mapping[str, float],
    *,
    every_step: bool = False,
) -> pd.DataFrame:
    """Return what each arm of each teacher keeps at its last step, unrounded.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show, in order; the held-out loss comes last,
            wherever it was measured.
        chance: for some tasks the score of a random choice, a fraction.
        every_step: one row per step instead of the last one alone.

    Returns:
        The teacher first, then the arms in the order of `iskd.paper.style.arm_styles`. Columns
        study, teacher, arm, step, seeds, parameters, reduction (a fraction), then for each task
        `<task>/<metric>` (mean over seeds, in the unit of metrics.csv), `.../spread` and
        `.../spread_of` as in `iskd.paper.metrics.aggregate`, and for scores that grow with
        quality `.../retention` and, where chance is known, `.../corrected_retention` (fractions).
        What was not measured is missing.

    Raises:
        UserError: a headline metric is not in the table, a teacher was not measured itself, or a
            chance level is wrong.
    """
    check_chance(chance)
    checked = tidy(metrics)
    panels = headline_panels(checked, headline)
    model = ["study", "teacher", "arm", "step"]
    table = aggregate(checked)
    # Not every task need be run with every seed: the column says how many seeds there are at most.
    frame = table.groupby(model, as_index=False)[["seeds", "reduction"]].max()
    frame = frame.merge(
        _values(table, *PARAMETERS)[[*model, "value"]].rename(columns={"value": "parameters"}),
        on=model,
        how="left",
    )
    if not every_step:
        last = frame.groupby(model[:3])["step"].transform("max")
        frame = frame[frame["step"] == last]
    for task, metric in panels:
        name = f"{task}/{metric}"
        columns = {key: f"{name}/{key}" for key in ("spread", "spread_of")} | {"value": name}
        values = _values(table, task, metric)[[*model, "value", "spread", "spread_of"]]
        frame = frame.merge(values.rename(columns=columns), on=model, how="left")
        frame[columns["spread_of"]] = frame[columns["spread_of"]].fillna("")
        if measure(metric).higher_is_better:
            _add_retention(frame, values, name, chance.get(task))
    order = list(arm_styles(frame["arm"]))
    frame = frame.assign(rank=frame["arm"].map(order.index))
    frame = frame.sort_values(["study", "teacher", "rank", "step"], ignore_index=True)
    whole = {"step": "Int64", "seeds": "Int64"}
    if (frame["parameters"].dropna() % 1 == 0).all():
        whole["parameters"] = "Int64"
    order_of_columns = [*model, "seeds", "parameters", "reduction"]
    tasks = [name for name in frame.columns if "/" in name]
    return frame[order_of_columns + tasks].astype(whole)


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
    model = ["study", "teacher", "arm", "step"]
    for name, task, metric in (
        ("tokens", "training", "tokens"),
        ("training_flops", "training", "flops"),
        ("flops_per_token", "model", "flops_per_token"),
    ):
        values = _values(table, task, metric)[[*model, "value"]].rename(columns={"value": name})
        main = main.merge(values, on=model, how="left")
    main["tokens"] = main["tokens"].astype("Int64")
    scores = [c for c in main.columns if "/" in c and "retention" not in c]
    order = [*model, "seeds", "parameters", "reduction"]
    order += [c for c in scores if c.startswith(loss)] + ["gap", "closed"]
    order += [c for c in scores if not c.startswith(loss)]
    order += ["tokens", "training_flops", "flops_per_token"]
    return main.sort_values(["study", "teacher", loss], ignore_index=True, kind="stable")[order]


def save_table(frame: pd.DataFrame, stem: Path, caption: str, label: str) -> None:
    """Write a table as `<stem>.csv` (raw numbers), `.md` and `.tex` (rounded, for readers).

    The LaTeX is a `table*` that needs the package booktabs. The columns of `main_table` get heads
    of their own and one cell for a score and its spread; any other column keeps its name.

    Args:
        frame: the table; the index is left out.
        stem: the path without its suffix.
        caption: plain text; what is special to LaTeX or Markdown is escaped.
        label: the LaTeX label, of letters, digits and ":.-".

    Raises:
        UserError: the label has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9:.-]+", label):
        raise UserError(f"label {label!r}: use letters, digits, colon, point and hyphen")
    caption = " ".join(caption.split())
    columns = _readable(frame)
    # Rows of one teacher belong together; a rule parts them from the next teacher's.
    names = [name for name in ("study", "teacher") if name in frame.columns]
    owners = list(frame[names].itertuples(index=False, name=None)) if names else [()] * len(frame)
    breaks = {i for i in range(1, len(owners)) if owners[i] != owners[i - 1]}
    for suffix, text in (
        ("csv", csv_text(frame)),
        ("md", _markdown(columns, caption)),
        ("tex", _tex(columns, breaks, caption, label)),
    ):
        stem.with_name(f"{stem.name}.{suffix}").write_bytes(text.encode())


@dataclass(frozen=True)
class _Column:
    """One column for readers; those of one group share its unit and stand side by side."""

    group: str
    head: str
    unit: str
    cells: list[str]
    is_text: bool = False


def _values(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["metric"] == metric)]


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


def _readable(frame: pd.DataFrame) -> list[_Column]:
    names = list(frame.columns)
    hidden: list[str] = []
    for name in ("study", "teacher"):
        if name in names and frame[name].nunique() < 2:
            hidden.append(name)
    if "seeds" in names and not (frame["seeds"] > 1).any():
        hidden.append("seeds")
    columns = []
    for name in names:
        task, metric, part = [*name.split("/"), "", ""][:3]
        if name in hidden:
            continue
        if metric not in MEASURES:
            columns.append(_plain_column(frame[name], name))
        elif part not in ("spread", "spread_of"):
            columns.append(_task_column(frame, name, task, metric, part))
    return columns


def _task_column(frame: pd.DataFrame, name: str, task: str, metric: str, part: str) -> _Column:
    group = task_title(task)
    if part:
        head = _RETENTIONS[part]
        return _Column(group, head, "%", [_fixed(value * 100, 1) for value in frame[name]])
    how = measure(metric)
    spreads = frame.get(f"{name}/spread", pd.Series(float("nan"), index=frame.index))
    cells = [_score(v, s, how) for v, s in zip(frame[name], spreads, strict=True)]
    return _Column(group, how.short, how.unit, cells)


def _plain_column(values: pd.Series, name: str) -> _Column:
    head = _IDENTITY.get(name, name)
    if name == "arm":
        styles = arm_styles(values)
        return _Column("", head, "", [styles[arm].label for arm in values], is_text=True)
    if name in _SCIENTIFIC:
        return _Column("", head, "", [_MISSING if pd.isna(v) else f"{v:.3g}" for v in values])
    if name in _PERCENT:
        return _Column("", head, "%", [_fixed(value * 100, 1) for value in values])
    if not pd.api.types.is_numeric_dtype(values):
        cells = [_MISSING if pd.isna(value) else str(value) for value in values]
        return _Column("", head, "", cells, is_text=True)
    decimals = 0 if pd.api.types.is_integer_dtype(values) else 3
    return _Column("", head, "", [_fixed(value, decimals) for value in values])


def _score(value: float, spread: float, how: Measure) -> str:
    text = _fixed(value * how.factor, how.decimals)
    return text if pd.isna(spread) else f"{text} ± {_fixed(spread * how.factor, how.decimals)}"


def _fixed(value: float, decimals: int) -> str:
    if pd.isna(value):
        return _MISSING
    text = f"{value:,.{decimals}f}"
    # A small negative number must not be printed as minus nothing.
    return text if text.strip("-0.") else text.removeprefix("-")


def _with_unit(text: str, unit: str) -> str:
    return f"{text} ({unit})" if unit else text


def _markdown(columns: list[_Column], caption: str) -> str:
    heads = [_with_unit(f"{column.group} {column.head}".strip(), column.unit) for column in columns]
    lines = [
        f"Table: {_escape_markdown(caption)}",
        "",
        _markdown_row(heads),
        "| " + " | ".join(":---" if column.is_text else "---:" for column in columns) + " |",
    ]
    for cells in zip(*(column.cells for column in columns), strict=True):
        lines.append(_markdown_row(list(cells)))
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(_escape_markdown(cell) for cell in cells) + " |"


def _escape_markdown(text: str) -> str:
    return _MARKDOWN_SPECIAL.sub(r"\\\1", text)


def _tex(columns: list[_Column], breaks: set[int], caption: str, label: str) -> str:
    # The unit goes with the group's head, which leaves the columns as narrow as their numbers.
    upper, rules, start = [], [], 1
    for (group, unit), members in itertools.groupby(columns, lambda c: (c.group, c.unit)):
        width = len(list(members))
        if group:
            head = _escape_tex(_with_unit(group, unit))
            upper.append(rf"\multicolumn{{{width}}}{{c}}{{{head}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        else:
            upper += [""] * width
        start += width
    heads = [c.head if c.group else _with_unit(c.head, c.unit) for c in columns]
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\scriptsize" if len(columns) > _FOOTNOTE_COLUMNS else r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{''.join('l' if c.is_text else 'r' for c in columns)}}}",
        r"\toprule",
    ]
    if rules:
        lines += [_tex_row(upper), "".join(rules)]
    lines += [_tex_row([_escape_tex(head) for head in heads]), r"\midrule"]
    for i, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        if i in breaks:
            lines.append(r"\midrule")
        lines.append(_tex_row([_escape_tex(cell) for cell in cells]))
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_escape_tex(caption)}}}",
        rf"\label{{{label}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape_tex(text: str) -> str:
    escaped = "".join(_TEX_SPECIAL.get(character, character) for character in text)
    # A hyphen before a digit at the start of a cell is a minus sign.
    return re.sub(r"^-(?=\d)", "$-$", escaped)
