"""The first page of the report: what was studied, and what came out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.columns import Column, own_head
from iskd.paper.formats import fixed, quantity, with_interval
from iskd.paper.main_table import main_table
from iskd.paper.measures import HELDOUT, measure
from iskd.paper.metrics import tidy
from iskd.paper.queries import aggregate, at_headline, headline_panels, rows_of
from iskd.paper.style import arm_styles, task_title
from iskd.paper.tables import in_order

# Snakemake centres the page in the window: of one that is higher, the first lines would be out of
# reach. Its column is narrow for a table, and a digest would run out of it.
STYLE = """\
.. raw:: html

   <style>
   div.grow.items-center.h-screen { align-items: flex-start !important; }
   div.prose { max-width: 44rem !important; line-height: 1.35; }
   div.prose p, div.prose ul, div.prose table { margin: .5em 0 !important; }
   div.prose li, div.prose li p, div.prose td p, div.prose th p { margin: 0 !important; }
   div.prose td, div.prose th { padding: .15em .5em !important; vertical-align: top; }
   div.prose tt { overflow-wrap: anywhere; }
   div#rulegraph { max-height: 97vh; overflow: auto; }
   </style>

"""
"""What goes before the page in the report, and into no other place."""
_INTRODUCTION = """\
Iterative Structured Knowledge Distillation (ISKD): one transformer block after the other is
replaced by a compact one, and after each replacement the whole model is fine-tuned, at a high
learning rate in the new block and at a low one elsewhere. Baselines have the same number of
parameters, or have seen the same tokens, or both.
"""
_READING = """\
Numbers are means over seeds; in brackets, the smallest and the largest seed, or a 95 % interval
over the task's items where there is one seed. *Keeps* is score / teacher's score. Each figure and
table says below it what is seen and how it was made; every number stands in ``metrics.csv`` or
``measurements.csv``.
"""
_ROOT = """\
Root digest: ``{root}``. It names, by way of the statements it stands for, every model, answer and
number of this study; ``iskd verify results/<study> --root`` compares it with what lies there.
"""


def summary_page(
    metrics: pd.DataFrame,
    headline: Mapping[str, str],
    chance: Mapping[str, float],
    headline_step: Mapping[str, int],
    spec: Mapping[str, Any],
) -> str:
    """Write the report's first page as reStructuredText.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show.
        chance: for some tasks the score of a random choice.
        headline_step: the step to report, per teacher.
        spec: ``study``, ``seeds``, ``corpus`` (in words), and ``root``, the study's root digest.
    """
    checked = tidy(metrics)
    reported = at_headline(checked, headline_step)
    seeds = ", ".join(map(str, spec["seeds"]))
    parts = [
        f"Study **{spec['study']}**, seeds {seeds}, corpus: {_rst(spec['corpus'])}.",
        _INTRODUCTION,
    ]
    for teacher, step in headline_step.items():
        own = reported[reported["teacher"] == teacher]
        parts += [
            f"**{_rst(teacher)}** at step {step}",
            *_sentences(own, headline, chance, teacher),
            _list_table(_columns(own, headline)),
        ]
    parts += [_READING, _ROOT.format(root=spec["root"])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _sentences(
    own: pd.DataFrame, headline: Mapping[str, str], chance: Mapping[str, float], teacher: str
) -> list[str]:
    """Say in a sentence for each arm what it keeps."""
    table = main_table(own, headline, chance)
    styles = arm_styles(table["arm"])
    found = []
    for row in table.to_dict("records"):
        if row["arm"] == TEACHER_ARM or pd.isna(row["parameters"]):
            continue
        kept = [
            f"{100 * row[name]:.1f} % of {task_title(task)}"
            for task, metric in headline.items()
            if (name := f"{task}/{metric}/retention") in row and pd.notna(row[name])
        ]
        size = f"{fixed(float(row['parameters']), 0)} parameters"
        smaller = f"{100 * row['reduction']:.1f} % fewer than {_rst(teacher)}"
        keeps = f", keeps {', '.join(kept)}" if kept else ""
        found.append(f"* {_rst(styles[row['arm']].label)}: {size}, {smaller}{keeps}")
    return ["\n".join(found)] if found else []


def _columns(own: pd.DataFrame, headline: Mapping[str, str]) -> list[Column]:
    """Give a short table: each arm's score per task and its loss."""
    table = aggregate(own)
    table = table[table["step"] == table.groupby("arm")["step"].transform("max")]
    arms = in_order(table)["arm"].drop_duplicates().tolist()
    styles = arm_styles(arms)
    columns = [Column("", "Arm", "", [styles[arm].label for arm in arms], is_text=True)]
    for task, metric in headline_panels(own, headline):
        how = quantity(task, metric)
        rows = rows_of(table, task, metric).set_index("arm")
        cells = []
        for arm in arms:
            value, low, high = (
                float(rows[name].get(arm, math.nan)) for name in ("value", "low", "high")
            )
            cells.append(with_interval(value, low, high, how))
        head = task_title(task) if (task, metric) == HELDOUT else _named(task, metric)
        columns.append(Column("", head, how.unit, cells))
    return columns


def _named(task: str, metric: str) -> str:
    return f"{task_title(task)}, {measure(metric).short}"


def _list_table(columns: Sequence[Column]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    rows = [[own_head(column) for column in columns]]
    rows += [list(cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {_rst(cell)}" for i, cell in enumerate(row)]
    return "\n".join(lines)


def _rst(text: str) -> str:
    """Keep reStructuredText, and the report's own templates, from reading signs as markup."""
    for special in "\\*`|_":
        text = text.replace(special, f"\\{special}")
    return text.replace("{", "(").replace("}", ")")
