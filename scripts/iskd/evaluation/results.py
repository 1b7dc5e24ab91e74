"""What one evaluation leaves on disk: its numbers, and its answer to every item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iskd.evaluation.metric import Metric
from iskd.provenance.artifact import canonical_json

RESULT = "result.json"
SAMPLES = "samples.jsonl"


def write_result(
    folder: Path,
    metrics: Mapping[str, Metric],
    *,
    facts: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the numbers of one evaluation, and its per-item answers where it has items.

    Args:
        folder: the artifact's folder.
        metrics: by name: value, standard error, number of items.
        facts: what else was found out about the model or the task (parameters, chance).
        samples: one record per item.
    """
    result = {"metrics": {n: asdict(m) for n, m in metrics.items()}, "facts": dict(facts or {})}
    (folder / RESULT).write_text(canonical_json(result), encoding="utf-8")
    if samples is not None:
        lines = (json.dumps(s, sort_keys=True, allow_nan=False) + "\n" for s in samples)
        (folder / SAMPLES).write_text("".join(lines), encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read the ``result.json`` of an evaluation: ``metrics`` and ``facts``."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result
