"""The model card of a compressed checkpoint, with what was measured of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iskd.paper.card_tables import rows_of, score_table, size_table
from iskd.paper.layout import escape_markdown
from iskd.paper.measures import measure
from iskd.paper.style import task_title

_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
"""
_USE = f"""\
With the package `iskd` installed:

```python
import iskd  # tells transformers about its blocks
{_LOAD}```

Without it, transformers runs the model code that lies in the folder (`iskd_*.py`), once you allow
it to:

```python
model = AutoModelForCausalLM.from_pretrained("this/folder", trust_remote_code=True)
```
"""
_PLAIN_USE = f"""\
All of its blocks are whole, so this is the library's own class; no other code is needed:

```python
{_LOAD}```
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
    own_code: bool = True,
) -> str:
    """Write the card of one model as Markdown with the hub's metadata on top.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; may be empty.
        model: teacher, arm, seed and step.
        headline: for each task the metric to quote in the metadata.
        spec: ``study``, ``method``, ``base_model`` (an id of the hub, or None), ``licence`` (its
            name on the hub, or None), ``corpus`` (in words), ``datasets`` (ids of the hub),
            ``tasks`` and ``texts`` (in the study's order), ``given`` (whether the teacher was made
            elsewhere).
        stored: number format of the weights, as a safetensors header names it.
        origin: where the teacher was unpacked from a GGUF file, its name ``gguf`` and what the
            ``quantization`` was; else empty.
        own_code: whether the folder carries model code, as one with changed blocks does.
    """
    rows = rows_of(metrics, model)
    values = {(r["task"], r["metric"]): r["value"] for r in rows.to_dict("records")}
    quoted = [(t, headline[t]) for t in spec["tasks"] if (t, headline[t]) in values]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task_title(task),
            metric_type=metric,
            metric_name=measure(metric).name,
            metric_value=round(float(values[task, metric]), 6),
        )
        for task, metric in quoted
    ]
    name = "-".join(str(model[k]) for k in ("teacher", "arm")) + f"-step-{model['step']}"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["iskd", "compression", "distillation"],
        base_model=spec["base_model"],
        license=spec["licence"],
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
            (_USE if own_code else _PLAIN_USE).rstrip(),
            "",
            "## What was measured",
            "",
            "In brackets: the 95 % interval over the task's items, by the passages they come from. "
            "Differences are to the teacher, item by item. All other numbers stand in the study's "
            "metrics.csv.",
            "",
            *score_table(metrics, model, headline, spec["tasks"], spec["texts"]),
            "",
            "Speed and memory depend on the machine; the ratios were measured in one job, in turn. "
            "In brackets: the slowest and the fastest repeat.",
            "",
            *size_table(metrics, measurements, model),
            "",
            "## Limits",
            "",
            "A compressed model forgets what its corpus does not show, and keeps the teacher's "
            "biases or exchanges them for others: see the share of answers that changed.",
            "",
            *_licence(spec, str(model["teacher"])),
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


def _licence(spec: Mapping[str, Any], teacher: str) -> list[str]:
    """Say what is known of the teacher's terms, and where what is not known can be said."""
    if not spec["given"]:
        return ["The teacher was trained in this study, on the corpus above."]
    if spec["licence"] is not None:
        first = f"The teacher's licence, {spec['licence']}, and its terms hold for this model too."
    else:
        first = "The teacher's licence and terms hold for this model too."
    missing = [key for key in ("licence", "base_model") if spec[key] is None]
    if not missing:
        return [first]
    keys = " and ".join(f"`teachers.{teacher}.{key}`" for key in missing)
    return [f"{first} Not known here: {keys} in the study's config."]
