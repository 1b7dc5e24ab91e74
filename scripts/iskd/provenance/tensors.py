"""What a safetensors file holds, read from its bytes alone: nothing is loaded, let alone run.

The form: eight bytes with the length of a JSON header, the header (for each tensor its dtype, shape
and place), the tensors (https://huggingface.co/docs/safetensors, "Format").
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

# The library itself refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
MASTER = "master.safetensors"
"""The float32 weights that the next step of a chain trains on, beside rounded published ones."""
ANSWERS_ABOUT = "answers.json"
"""What describes a teacher's recorded answers, beside them."""
PROJECTION = "projection.safetensors"
"""The teacher's output projection, where these are hidden states."""
_CHUNK = 2**20


class TensorsError(ValueError):
    """A file that is no safetensors file."""


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the tensors in a file, by name.

    Raises:
        TensorsError: the file is no safetensors file.
    """
    with path.open("rb") as stream:
        header, _ = _header(stream, path)
    return {name: tuple(about["shape"]) for name, about in header.items()}


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a model's weights: one, or the shards of a larger model."""
    return sorted(folder.glob("model*.safetensors"))


def answer_file(number: int) -> str:
    """Name the file with a part of a teacher's recorded answers, from 1."""
    return f"answers-{number:05d}.safetensors"


def answer_files(folder: Path) -> list[Path]:
    """List the files that hold a teacher's recorded answers, in their order."""
    return sorted(folder.glob("answers-*.safetensors"))


def dominant_dtype(paths: Iterable[Path]) -> str:
    """Give the number format that most of the numbers in some files have, as headers name it.

    Raises:
        TensorsError: a file is no safetensors file, or there are no numbers.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        with path.open("rb") as stream:
            header, _ = _header(stream, path)
        for about in header.values():
            counts[about["dtype"]] += math.prod(about["shape"])
    if not counts:
        raise TensorsError("there are no weights")
    return counts.most_common(1)[0][0]


def check_complete(path: Path) -> None:
    """Check that a file is as long as its header says, without reading the tensors.

    Raises:
        TensorsError: it is no safetensors file, or cut short.
    """
    with path.open("rb") as stream:
        header, start = _header(stream, path)
    needed = start + max((about["data_offsets"][1] for about in header.values()), default=0)
    size = path.stat().st_size
    if size < needed:
        raise TensorsError(f"{path.name} is cut short: {size} of {needed} bytes are there")


def count_parameters(path: Path) -> int:
    """Count the numbers in a file.

    Raises:
        TensorsError: the file is no safetensors file.
    """
    return sum(math.prod(shape) for shape in tensor_shapes(path).values())


def tensors_digest(path: Path) -> str:
    """Give the digest of the tensors in a file, in whatever order they lie there.

    Two files with the same numbers have the same digest, though another library has written one of
    them.

    Returns:
        the sha256, in hexadecimal, over name, dtype, shape and the sha256 of the bytes of each
        tensor, sorted by name

    Raises:
        TensorsError: the file is no safetensors file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        header, start = _header(stream, path)
        for name, about in sorted(header.items()):
            first, last = about["data_offsets"]
            part = _part_digest(stream, start + first, last - first, path)
            digest.update(f"{name}\0{about['dtype']}\0{about['shape']}\0{part}\n".encode())
    return digest.hexdigest()


def _header(stream: IO[bytes], path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Read the header: what it says of each tensor, and where the first one begins."""
    try:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header would be too long")
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        header.pop("__metadata__", None)
        for about in header.values():
            sizes = [*about["shape"], *about["data_offsets"]]
            if len(about["data_offsets"]) != 2 or not isinstance(about["dtype"], str):
                raise ValueError("its header is not complete")
            if any(type(size) is not int or size < 0 for size in sizes):
                raise ValueError("its header has sizes that are none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TensorsError(f"{path.name} is no safetensors file: {error}") from error
    return header, 8 + length


def _part_digest(stream: IO[bytes], start: int, length: int, path: Path) -> str:
    stream.seek(start)
    digest = hashlib.sha256()
    while length > 0:
        data = stream.read(min(length, _CHUNK))
        if not data:
            raise TensorsError(f"{path.name} is cut short")
        digest.update(data)
        length -= len(data)
    return digest.hexdigest()
