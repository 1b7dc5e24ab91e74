"""What one evaluation leaves on disk, numbers and answers, and the names of what it is about."""

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.evaluation.metric import Metric
from iskd.provenance.artifact import canonical_json

RESULT = "result.json"
SAMPLES = "samples.jsonl.gz"
TEACHER_ARM = "teacher"
"""The name, where arms are named, of what has no arm: the teacher itself."""

ModelKey = tuple[Any, ...]


def model_key(about: Mapping[str, Any]) -> ModelKey:
    """Give what names a model among a study's: teacher, arm, seed, step."""
    return about["teacher"], about["arm"], about["seed"], about["step"]


def write_result(
    folder: Path,
    metrics: Mapping[str, Metric],
    *,
    facts: Mapping[str, Any] | None = None,
    samples: Iterable[Mapping[str, Any]] | None = None,
) -> None:
    """Write the numbers of one evaluation, and its per-item answers where it has items.

    Args:
        folder: the artifact's folder.
        metrics: by name: value, standard error, number of items.
        facts: what else was found out about the model or the task (parameters, chance).
        samples: one record per item, see :func:`write_samples`.
    """
    result = {"metrics": {n: asdict(m) for n, m in metrics.items()}, "facts": dict(facts or {})}
    (folder / RESULT).write_text(canonical_json(result), encoding="utf-8")
    if samples is not None:
        write_samples(folder / SAMPLES, samples)


def read_result(path: Path) -> dict[str, Any]:
    """Read the ``result.json`` of an evaluation: ``metrics`` and ``facts``."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def write_samples(path: Path, samples: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per item and line, compressed; the same samples give the same bytes.

    Raises:
        ValueError: a number is infinite or none at all, which JSON does not have.
    """
    # Neither a file name nor a time goes into the header.
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as stream,
    ):
        for sample in samples:
            line = json.dumps(sample, sort_keys=True, allow_nan=False)
            stream.write(f"{line}\n".encode())


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_samples` has written, in its order.

    Raises:
        UserError: the file is missing, cut short, or holds something else.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (gzip.BadGzipFile, EOFError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it, the next call makes it again"
        ) from None
