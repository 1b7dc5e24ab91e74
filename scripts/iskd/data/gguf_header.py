"""What a GGUF file says of its model, read from its header alone.

The form: magic and version, the numbers of tensors and of keys, the keys with their values, and for
each tensor its name, sizes, type and place (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
The package ``gguf`` reads the same in seconds, of which a call of Snakemake that plans a study has
none to spare; its table of types is used where weights are read.
"""

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Value types of one size, by their number in the file.
_PLAIN = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f"},
    **{7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
_STRING, _ARRAY = 8, 9
# No key or name is longer, and no model has more tensors.
_LONGEST = 2**24
_MOST = 2**20
# Names of tensor types, by their number in the file (ggml.h, enum ggml_type).
_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS"},
    **{17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}


class GgufError(ValueError):
    """A file that is no GGUF file, or not a whole one."""


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        values: its keys with their values; of arrays only how long they are.
        types: how many tensors are stored in which type.
    """

    values: dict[str, Any]
    types: dict[str, int]

    @property
    def architecture(self) -> str:
        """The model's architecture, as llama.cpp calls it."""
        return str(self.values.get("general.architecture"))

    @property
    def blocks(self) -> int | None:
        """The number of transformer blocks, if the file tells."""
        found = self.values.get(f"{self.architecture}.block_count")
        return found if isinstance(found, int) else None

    @property
    def quantization(self) -> str:
        """The types of its tensors in words, the most frequent first."""
        ranked = sorted(self.types.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name} ({count} tensors)" for name, count in ranked)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, and check that the place of each tensor lies in the file.

    Raises:
        GgufError: it is no GGUF file of version 2 or 3, or it is cut short.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise GgufError(f"{path.name} is no GGUF file")
        try:
            version, tensors, keys = _unpack(stream, "<I"), _count(stream), _count(stream)
            if version not in _VERSIONS:
                raise GgufError(f"{path.name} is GGUF version {version}; 2 and 3 can be read")
            values = {}
            for _ in range(keys):
                key = _string(stream)
                values[key] = _value(stream, _unpack(stream, "<I"))
            types: Counter[str] = Counter()
            last = 0
            for _ in range(tensors):
                _string(stream)
                for _ in range(_unpack(stream, "<I")):
                    _unpack(stream, "<Q")
                number = _unpack(stream, "<I")
                types[_TYPES.get(number, f"type {number}")] += 1
                last = max(last, _unpack(stream, "<Q"))
            here = stream.tell()
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise GgufError(f"{path.name} is cut short or damaged") from None
    if here + last > path.stat().st_size:
        raise GgufError(f"{path.name} is cut short")
    return GgufHeader(values, dict(types))


def _unpack(stream: IO[bytes], form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _count(stream: IO[bytes]) -> int:
    found = int(_unpack(stream, "<Q"))
    if found > _MOST:
        raise OverflowError
    return found


def _string(stream: IO[bytes]) -> str:
    length = int(_unpack(stream, "<Q"))
    if length > _LONGEST:
        raise OverflowError
    text = stream.read(length)
    if len(text) < length:
        raise struct.error
    return text.decode()


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        if kind not in _PLAIN:
            raise OverflowError
        return _unpack(stream, _PLAIN[kind])
    inner, length = _unpack(stream, "<I"), int(_unpack(stream, "<Q"))
    if length > _LONGEST:
        raise OverflowError
    if inner in _PLAIN:
        stream.seek(length * struct.calcsize(_PLAIN[inner]), 1)
    else:
        for _ in range(length):
            _value(stream, inner)
    return length
