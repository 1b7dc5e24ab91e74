"""Tables of what models need: size, memory and speed, and what it cost to make them."""

import re
from collections.abc import Sequence

import pandas as pd

from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.columns import Column
from iskd.paper.formats import MISSING, Quantity, quantity, with_interval, with_spread
from iskd.paper.metrics import tidy
from iskd.paper.queries import MODEL, aggregate
from iskd.paper.tables import in_order, key_columns

EFFICIENCY_NOTE = (
    "Size on disk: the weights as published, in the teacher's number format (32 bits: float32; 16: "
    "bfloat16 or float16) unless save_precision says otherwise. FLOPs/token: of a forward pass, "
    "computed. Memory, prefill and decoding are measured, teacher and model in turn in the same "
    "job; × is the median of the paired ratios model / teacher, in brackets the smallest and the "
    "largest repeat. A speed above 1 is faster than the teacher, memory below 1 is less. As a "
    "draft: the model writes ahead and the teacher keeps what it would have written itself; the "
    "share that it kept, and its speed over that without a draft, one text at once."
)
"""What the columns of `efficiency_table` mean."""

COSTS_NOTE = (
    "What was spent since the teacher, on all steps so far; ± is one standard deviation over "
    "seeds. Device hours: of the jobs that trained the model, times GPUs, or cores where there "
    "are none. "
    "Evaluation hours: of the jobs that measured it. Energy: what the device's counter says, "
    "which counts everything that ran on the device."
)
"""What the columns of `costs_table` mean."""

_EFFICIENCY = "efficiency"
_FACTS = (("model", "parameters"), ("model", "checkpoint_bytes"), ("model", "flops_per_token"))
_COSTS = (
    ("training", "tokens"),
    ("training", "flops"),
    ("cost", "device_hours"),
    ("cost", "evaluation_hours"),
    ("cost", "energy"),
)
_FACT_HEADS = {
    "parameters": "Parameters",
    "checkpoint_bytes": "On disk",
    "flops_per_token": "FLOPs/token",
    "tokens": "Tokens",
    "flops": "Training FLOPs",
    "device_hours": "Device hours",
    "evaluation_hours": "Evaluation hours",
    "energy": "Energy",
}
_DRAFT = (("efficiency", "draft_acceptance"), ("efficiency", "draft_ratio"))
_KINDS = {"memory": "memory", "prefill": "prefill", "decode": "decoding"}


def batch_sizes(measurements: pd.DataFrame) -> list[int]:
    """List the batch sizes at which efficiency was measured."""
    own = measurements.loc[measurements["task"] == _EFFICIENCY, "metric"]
    found = {int(m[1]) for metric in own if (m := re.fullmatch(r"\w+?_b(\d+)(?:_ratio)?", metric))}
    return sorted(found)


def efficiency_table(metrics: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """Return what each arm's last step needs, beside its teacher.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; may be empty.

    Returns:
        Columns study, teacher, arm, step, seeds, `model/parameters`, `model/checkpoint_bytes`,
        `model/flops_per_token` (means over seeds), then for each batch size B and what was
        measured, `efficiency/memory_b<B>` (bytes), `prefill_b<B>`, `decode_b<B>` (tokens/s), each
        with `/low` and `/high`, and the same of `..._ratio`; where models were tried as drafts,
        also `efficiency/draft_acceptance` and `draft_ratio`. What was not measured is missing.
    """
    names = [
        (_EFFICIENCY, f"{kind}_b{size}{suffix}")
        for size in batch_sizes(measurements)
        for kind in _KINDS
        for suffix in ("", "_ratio")
    ]
    if (measurements["metric"] == "draft_ratio").any():
        names += _DRAFT
    return _wide(metrics, measurements, _FACTS, names, ends=True)


def costs_table(metrics: pd.DataFrame, measurements: pd.DataFrame) -> pd.DataFrame:
    """Return what each arm's last step cost.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; may be empty.

    Returns:
        Columns study, teacher, arm, step, seeds, and means over seeds, each with `/spread` (its
        standard deviation where there are several): `training/tokens`, `training/flops`,
        `cost/device_hours`, `cost/evaluation_hours`, `cost/energy` (joules, where the device
        tells). The teacher's row holds what its evaluation took.
    """
    return _wide(metrics, measurements, (), _COSTS, ends=False)


def _wide(
    metrics: pd.DataFrame,
    measurements: pd.DataFrame,
    facts: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]],
    *,
    ends: bool,
) -> pd.DataFrame:
    """Give one row per model at its last step, and a column for each number."""
    both = tidy(pd.concat([metrics, measurements], ignore_index=True))
    table = aggregate(both)
    table = table[table["step"] == table.groupby(MODEL[:3])["step"].transform("max")]
    frame: pd.DataFrame = table.groupby(MODEL, as_index=False)[["seeds"]].max()
    for task, metric in [*facts, *others]:
        rows = table[(table["task"] == task) & (table["metric"] == metric)]
        name = f"{task}/{metric}"
        columns = {"value": name}
        if (task, metric) in others:
            columns |= {k: f"{name}/{k}" for k in (("low", "high") if ends else ("spread",))}
        frame = frame.merge(rows[[*MODEL, *columns]].rename(columns=columns), on=MODEL, how="left")
    return in_order(frame).astype({"step": "Int64", "seeds": "Int64"})


def efficiency_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns of `efficiency_table` for readers."""
    columns = [*key_columns(frame), *(_fact(frame, *fact) for fact in _FACTS)]
    sizes = zip(frame["model/checkpoint_bytes"], frame["model/parameters"], strict=True)
    # Formats have whole bytes; what is beyond them is the files' headers.
    stored = ["" if pd.isna(size) else f"{8 * int(size // count)}" for size, count in sizes]
    columns.append(Column("", "Stored with", "bits/weight", stored))
    for name in [n for n in frame.columns if re.fullmatch(r"efficiency/\w+_b\d+", n)]:
        metric = name.partition("/")[2]
        kind, _, size = metric.partition("_b")
        how = quantity(_EFFICIENCY, metric)
        group = f"{_KINDS[kind].capitalize()}, batch {size}"
        columns.append(Column(group, how.unit, "", [how.text(v) for v in frame[name]]))
        ratio = f"{name}_ratio"
        rows = zip(*(frame[c] for c in (ratio, f"{ratio}/low", f"{ratio}/high")), strict=True)
        as_ratio = Quantity("", "×", decimals=2)
        cells = [with_interval(value, low, high, as_ratio) for value, low, high in rows]
        # The teacher is what the others are measured by.
        own = frame["arm"] == TEACHER_ARM
        cells = ["1" if o and c == MISSING else c for o, c in zip(own, cells, strict=True)]
        columns.append(Column(group, "×", "", cells))
    return columns + _draft_columns(frame)


def _draft_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns about models as drafts, where there are any."""
    accepted, speed = (f"{task}/{metric}" for task, metric in _DRAFT)
    if speed not in frame:
        return []
    kept = quantity(*_DRAFT[0])
    rows = zip(frame[speed], frame[f"{speed}/low"], frame[f"{speed}/high"], strict=True)
    ratios = [with_interval(*row, quantity(*_DRAFT[1])) for row in rows]
    return [
        Column("As a draft", f"{kept.unit} accepted", "", [kept.text(v) for v in frame[accepted]]),
        Column("As a draft", "×", "", ratios),
    ]


def costs_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns of `costs_table` for readers."""
    columns = key_columns(frame)
    for task, metric in _COSTS:
        if frame[f"{task}/{metric}"].notna().any() or metric != "energy":
            columns.append(_fact(frame, task, metric))
    return columns


def _fact(frame: pd.DataFrame, task: str, metric: str) -> Column:
    how, name = quantity(task, metric), f"{task}/{metric}"
    spreads = frame.get(f"{name}/spread", pd.Series(float("nan"), index=frame.index))
    # A spread of nothing, as that of a number of tokens, need not be shown.
    pairs = zip(frame[name], spreads.where(spreads > 0), strict=True)
    unit = "" if metric.endswith("_hours") else how.unit
    cells = [with_spread(value, spread, how) for value, spread in pairs]
    return Column("", _FACT_HEADS[metric], unit, cells)
