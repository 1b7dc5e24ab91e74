"""How far two files are apart that should be the same: weights, numbers, or bytes."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Further apart, relative distances say nothing; nor is there one to zeros.
_FAR = 1e6
# A gibibyte: millions of answers. A packed file can promise a thousand times its size.
MAX_UNPACKED = 2**30


@dataclass(frozen=True)
class Distance:
    """How far a file is from the one that lies there.

    Attributes:
        file: its name.
        relative: largest relative distance; infinite where something else than a number differs.
        where: where it is largest.
    """

    file: str
    relative: float
    where: str

    def as_dict(self) -> dict[str, Any]:
        """Give the distance for machines; JSON has no infinite numbers."""
        finite = math.isfinite(self.relative)
        return {**vars(self), "relative": self.relative if finite else None}

    def __str__(self) -> str:
        return f"{self.file}: relative distance {self.relative:.3g} at {self.where}"


def compare_files(one: Path, other: Path) -> Distance:
    """Measure how far two files are apart.

    Of safetensors files it is the largest over tensors of |a - b| / |a| (Euclidean norms), of
    JSON and tables the largest over numbers of |a - b| / max(|a|, |b|); other files that differ are
    infinitely far apart.
    """
    try:
        if not one.is_file() or not other.is_file():
            return Distance(one.name, math.inf, "one of the two is not there")
        if one.suffix == ".safetensors":
            pairs = _tensors(one, other)
        else:
            pairs = _numbers(_parsed(one), _parsed(other), "")
        where, relative = max(pairs, key=lambda pair: pair[1], default=("nothing", 0.0))
    except ValueError as error:
        return Distance(one.name, math.inf, str(error))
    return Distance(one.name, relative, where)


def unpacked(path: Path) -> bytes:
    """Read a file that was packed by gzip.

    Raises:
        ValueError: it is damaged, or unpacks to more than any study's answers take.
    """
    try:
        with gzip.open(path) as stream:
            data = stream.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be unpacked: {error}") from error
    if len(data) > MAX_UNPACKED:
        raise ValueError(f"{path.name} unpacks to more than {MAX_UNPACKED:,} bytes")
    return data


def _tensors(one: Path, other: Path) -> Iterator[tuple[str, float]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        ours, theirs = load_file(one), load_file(other)
    except SafetensorError as error:  # no ValueError
        raise ValueError(f"one of them is damaged: {error}") from error
    if ours.keys() != theirs.keys():
        raise ValueError("they hold other tensors")
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise ValueError(f"{name} has another shape")
        norm = float(tensor.double().norm())
        gap = float((tensor.double() - theirs[name].double()).norm())
        if not gap <= norm * _FAR:  # so large, or none at all
            raise ValueError(f"{name} holds other numbers")
        yield name, gap / norm if gap else 0.0


def _parsed(path: Path) -> Any:
    data = unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in data.splitlines()]
    if name.endswith(".json"):
        return json.loads(data)
    if name.endswith(".csv"):
        return [line.split(",") for line in data.decode().splitlines()]
    raise ValueError("its bytes differ")


def _numbers(one: Any, other: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _numbers(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _numbers(*pair, f"{where}[{number}]")
    elif one != other:
        try:
            ours, theirs = float(one), float(other)
        except (TypeError, ValueError):
            raise ValueError(f"{where} differs in more than a number") from None
        yield where, abs(ours - theirs) / max(abs(ours), abs(theirs))
