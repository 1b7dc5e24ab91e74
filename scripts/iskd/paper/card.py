"""The model card of a compressed checkpoint, with what was measured of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iskd.paper.columns import Column
from iskd.paper.formats import is_known, p_value, quantity, with_interval
from iskd.paper.layout import escape_markdown, markdown_rows
from iskd.paper.measures import CHANCE, measure
from iskd.paper.style import task_title

_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_USE = """\
```python
import iskd  # tells transformers about compact blocks
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```
"""


def model_card(
    metrics: pd.DataFrame,
    measurements: pd.DataFrame,
    model: Mapping[str, Any],
    headline: Mapping[str, str],
    spec: Mapping[str, Any],
    *,
    stored: str,
    origin: Mapping[str, str],
) -> str:
    """Write the card of one model as Markdown with the hub's metadata on top.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; may be empty.
        model: teacher, arm, seed and step.
        headline: for each task the metric to quote in the metadata.
        spec: ``study``, ``method``, ``base_model`` (an id of the hub, or None), ``corpus`` (in
            words), ``datasets`` (ids of the hub).
        stored: number format of the weights, as a safetensors header names it.
        origin: where the teacher was unpacked from a GGUF file, its name ``gguf`` and what the
            ``quantization`` was; else empty.
    """
    rows = pd.concat([_rows_of(frame, model) for frame in (metrics, measurements)])
    own = rows[rows["task"].isin(list(headline))]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task_title(task),
            metric_type=metric,
            metric_name=measure(metric).name,
            metric_value=round(float(value), 6),
        )
        for task, metric, value in zip(own["task"], own["metric"], own["value"], strict=True)
        if headline[task] == metric
    ]
    name = "-".join(str(model[k]) for k in ("teacher", "arm")) + f"-step-{model['step']}"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["iskd", "compression", "distillation"],
        base_model=spec["base_model"],
        datasets=list(spec["datasets"]) or None,
        model_name=name,
        eval_results=results or None,
    )
    seed = "" if model["seed"] is None else f", seed {model['seed']}"
    text = "\n".join(
        [
            f"# {name}",
            "",
            f"Made from {escape_markdown(str(model['teacher']))} by the method "
            f"{spec['method']} (arm {escape_markdown(str(model['arm']))}, step {model['step']}"
            f"{seed}) in the study {spec['study']}. Corpus: {escape_markdown(spec['corpus'])}.",
            "",
            *_stored(stored, origin),
            "",
            "## Use",
            "",
            _USE.rstrip(),
            "",
            "## What was measured",
            "",
            "In brackets: the 95 % interval over the task's items, by the passages they come from; "
            "for speed, the slowest and the fastest repeat. Differences and ratios are to the "
            "teacher, item by item. Speed and memory depend on the machine; the ratios were "
            "measured in one job, in turn.",
            "",
            *_table(rows),
            "",
            "## Limits",
            "",
            "A compressed model forgets what its corpus does not show, and keeps the teacher's "
            "biases or exchanges them for others: see the share of answers that changed. The "
            "teacher's licence and terms hold for this model too.",
            "",
        ]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _stored(stored: str, origin: Mapping[str, str]) -> list[str]:
    """Say in which number format the weights are, and what they were before."""
    name = _FORMATS.get(stored, stored)
    lines = [f"The weights are stored in {name}."]
    if origin:
        lines.append(
            f"The teacher was unpacked from {escape_markdown(origin['gguf'])}, whose tensors are "
            f"stored as {escape_markdown(origin['quantization'])}: what that quantisation lost is "
            "lost in the teacher's own numbers, too."
        )
    return lines


def _rows_of(metrics: pd.DataFrame, model: Mapping[str, Any]) -> pd.DataFrame:
    seeds = metrics["seed"].isna() if model["seed"] is None else metrics["seed"] == model["seed"]
    same = (metrics["teacher"] == model["teacher"]) & (metrics["arm"] == model["arm"])
    return metrics[same & (metrics["step"] == model["step"]) & seeds.fillna(value=False)]


def _table(rows: pd.DataFrame) -> list[str]:
    cells: list[tuple[str, str, str, str]] = []
    for row in rows.to_dict("records"):
        task, metric = str(row["task"]), str(row["metric"])
        if metric == CHANCE or not is_known(task, metric):
            continue
        how = quantity(task, metric)
        if metric.endswith("_mcnemar"):
            number = p_value(row["value"], row["value"])
        else:
            number = with_interval(row["value"], row["low"], row["high"], how)
        items = "" if pd.isna(row["n"]) else str(int(row["n"]))
        cells.append((task_title(task), how.name, f"{number} {how.unit}".rstrip(), items))
    columns = [
        Column("", head, "", [cell[i] for cell in cells], is_text=i < 2)
        for i, head in enumerate(("Task", "What", "Number", "Items"))
    ]
    return markdown_rows(columns)
