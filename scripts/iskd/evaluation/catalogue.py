"""lm-eval's own tasks as its YAML files describe them, read without importing lm-eval.

A config is checked each time Snakemake starts, also in every job, and lm-eval takes seconds to
import. So its YAML files are found and read as plain data here: which data set, which splits,
which metrics. :mod:`iskd.evaluation.lm_task` makes tasks of them with lm-eval's own code.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from iskd.errors import UserError

MEAN = "mean"
AGGREGATIONS = (MEAN, "perplexity", "weighted_perplexity", "bits_per_byte")
"""How lm-eval makes one number of all items, by its names, as far as it is followed here: the mean;
exp(-mean) of log-likelihoods; exp of minus the quotient of two sums (log-likelihoods, words or
bytes); minus the same quotient over log 2."""

QUOTABLE: tuple[str, ...] = (
    *("acc_norm", "acc", "exact_match"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
)
"""Metrics that figures and tables can quote; which of them they quote is the first in this order
for accuracies, and the first in the task's own order otherwise."""

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")

# What lm-eval takes where a YAML file does not say it (lm_eval.api.registry, 0.4.13).
_DEFAULT_METRICS = {
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
_DEFAULT_AGGREGATIONS = {
    **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"), MEAN),
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
}
_DATA_FORMATS = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml", "webdataset")
_NAME_LINE = re.compile(rb"""(?m)^["']?(task|group)["']?:[ \t]*["']?([^\s"'#\[]+)""")
_TAG_LINES = re.compile(rb"(?m)^tag:[ \t]*(.*(?:\n[ \t]*-[ \t]*\S+)*)")


@dataclass(frozen=True)
class LmTask:
    """One task of lm-eval.

    Attributes:
        name: lm-eval's name for it.
        path: its YAML file.
        output_type: one of `OUTPUT_TYPES`.
        split: the split that is evaluated: test where there is one, else validation.
        fewshot_split: the split that examples for prompts come from; None where they stand in the
            YAML file itself, or where there is none.
        metrics: those that are measured, each with its name in `AGGREGATIONS`.
        headline: the metric to quote where one number is quoted; None where none of them can be.
        options: all that the YAML files say, functions by their names.
    """

    name: str
    path: Path
    output_type: str
    split: str
    fewshot_split: str | None
    metrics: Mapping[str, str]
    headline: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class HubRows:
    """Where on the hub the rows of a task lie.

    Attributes:
        dataset: id of the data set.
        config: its configuration, or None.
        options: further arguments of ``datasets.load_dataset``.
    """

    dataset: str
    config: str | None
    options: Mapping[str, Any]


@cache
def find_task(name: str) -> LmTask:
    """Find a task of the installed lm-eval by its name.

    Raises:
        UserError: lm-eval is not installed, has no such task, or the task cannot be run here.
    """
    path = _yaml_file(name)
    if path is None:
        raise UserError(_unknown(name))
    options = _read(path)
    kind = options.get("output_type", "generate_until")
    if "class" in options:
        raise UserError(f"{name} is a Python class of lm-eval; only tasks in YAML can be run here")
    if kind not in OUTPUT_TYPES:
        raise UserError(
            f"{name} is of lm-eval's output type {kind}; use a task of type "
            f"{', '.join(OUTPUT_TYPES)}"
        )
    if options.get("doc_to_image") or options.get("doc_to_audio"):
        raise UserError(f"{name} shows images or plays sounds; use a task of text alone")
    split = options.get("test_split") or options.get("validation_split")
    if not split:
        raise UserError(f"{name} has neither a test nor a validation split; use another task")
    metrics = _metrics(options, kind)
    if not metrics:
        raise UserError(
            f"{name} has no metric that is a mean over its items or a perplexity; use another task"
        )
    return LmTask(
        name=name,
        path=path,
        output_type=kind,
        split=split,
        fewshot_split=_fewshot_split(options),
        metrics=MappingProxyType(metrics),
        headline=_headline(metrics),
        options=MappingProxyType(options),
    )


def hub_rows(task: LmTask) -> HubRows:
    """Tell where a task's rows are fetched from.

    Raises:
        UserError: not from a data set of the hub, or only by running code that lies there.
    """
    dataset, own = task.options.get("dataset_path"), dict(task.options.get("dataset_kwargs") or {})
    remedy = "give its rows yourself, with source: file"
    # Whatever switch there is for it by then.
    switches = [name for name in own if name.startswith("trust_")]
    wanted = [own.pop(name) for name in switches]
    if any(wanted):
        raise UserError(f"{task.name} needs code that lies in {dataset}, and none is run; {remedy}")
    if "custom_dataset" in task.options or not dataset or dataset in _DATA_FORMATS:
        raise UserError(f"the rows of {task.name} are no data set of the hub; {remedy}")
    # A branch or a tag would move, and all rows are read one by one.
    for decided in ("revision", "streaming", "split"):
        own.pop(decided, None)
    return HubRows(dataset, task.options.get("dataset_name"), MappingProxyType(own))


def check_fewshot(task: LmTask, examples: int) -> None:
    """Check that a task can be run with examples in the prompt.

    Raises:
        UserError: it cannot.
    """
    if not examples:
        return
    if task.output_type == "loglikelihood_rolling":
        raise UserError(f"{task.name} scores a running text, which takes no examples; remove it")
    given = (task.options.get("fewshot_config") or {}).get("samples")
    if task.fewshot_split == task.split and not given:
        raise UserError(
            f"{task.name} has no split for examples besides {task.split}, which is evaluated; "
            f"set it to 0"
        )


def _fewshot_split(options: Mapping[str, Any]) -> str | None:
    """Choose as lm-eval does (ConfigurableTask.fewshot_docs)."""
    own = options.get("fewshot_config") or {}
    named = own.get("split") or options.get("fewshot_split")
    if named or own.get("samples"):
        return named
    kinds = ("training_split", "validation_split", "test_split")
    return next((options[kind] for kind in kinds if options.get(kind)), None)


def _metrics(options: Mapping[str, Any], kind: str) -> dict[str, str]:
    listed = options.get("metric_list") or [{"metric": m} for m in _DEFAULT_METRICS[kind]]
    found: dict[str, str] = {}
    for entry in listed:
        name = str(entry["metric"])
        aggregation = entry.get("aggregation") or _DEFAULT_AGGREGATIONS.get(name)
        if aggregation in AGGREGATIONS:
            found[name] = aggregation
    return found


def _headline(metrics: Mapping[str, str]) -> str | None:
    for name in ("acc_norm", "acc", *metrics):
        if name in metrics and name in QUOTABLE:
            return name
    return None


# --- YAML files -----------------------------------------------------------------------------


@cache
def _folder() -> Path:
    """Find the folder of lm-eval's tasks."""
    found = find_spec("lm_eval")
    if found is None or found.origin is None:
        raise UserError(
            "lm-eval, which knows this task, is not installed where Snakemake runs; install "
            "envs/requirements.lock there"
        )
    return Path(found.origin).parent / "tasks"


@cache
def _files() -> tuple[Path, ...]:
    return tuple(
        Path(top, file)
        for top, _, files in os.walk(_folder())
        for file in files
        if file.endswith(".yaml")
    )


def _yaml_file(name: str) -> Path | None:
    """Find the file that defines a task; files named like it are looked into first."""

    wanted = (b"task", name.encode())
    likely = [p for p in _files() if p.name == f"{name}.yaml" or p.parent.name == name]
    # No two files define one name, so the order decides on the time alone.
    return next((p for p in (*likely, *_files()) if wanted in _names(p)), None)


def _names(path: Path) -> list[tuple[bytes, bytes]]:
    """Give what a file defines, as (``task`` or ``group``, name)."""
    return [(found[1], found[2]) for found in _NAME_LINE.finditer(path.read_bytes())]


def _unknown(name: str) -> str:
    """Say why there is no such task."""
    tasks: list[str] = []
    tagged: set[Path] = set()
    for path in _files():
        defined = [(kind, own.decode()) for kind, own in _names(path)]
        if (b"group", name) in defined:
            members = _members(_read(path))
            return f"{name} is a group of lm-eval's; name its members: {', '.join(members)}"
        tasks += [found for kind, found in defined if kind == b"task"]
        tags = _TAG_LINES.search(path.read_bytes())
        if tags and name in re.split(r"[\s,\[\]\"'-]+", tags[1].decode()):
            tagged.add(path.parent)
    if tagged:
        # A file may have its tags from one that it includes.
        read = [_read(path) for path in _files() if path.parent in tagged]
        own = sorted(o["task"] for o in read if "task" in o and name in _listed(o.get("tag")))
        return f"{name} is a tag of lm-eval's; name its tasks: {', '.join(own)}"
    near = difflib.get_close_matches(name, tasks, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return f"lm-eval has no task {name!r}; {hint}"


def _members(group: Mapping[str, Any]) -> list[str]:
    members = _listed(group.get("task"))
    return [m if isinstance(m, str) else str(m.get("task") or m.get("group")) for m in members]


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or [])


class _Loader(yaml.SafeLoader):
    """Reads ``!function module.name`` as the text behind the tag."""


_Loader.add_constructor("!function", lambda _loader, node: str(node.value))


def _read(path: Path) -> dict[str, Any]:
    """Read a task's file over those that it includes."""
    with path.open(encoding="utf-8") as stream:
        # The loader is a safe one; what is odd is only its further tag.
        own: dict[str, Any] = yaml.load(stream, Loader=_Loader)  # noqa: S506
    merged: dict[str, Any] = {}
    for name in _listed(own.pop("include", None)):
        merged |= _read(path.parent / name)
    return merged | own
