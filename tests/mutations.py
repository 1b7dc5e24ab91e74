"""What a config or a data file may be made into by a slip, a bad copy or a bad tool."""

import copy
import datetime
import functools
import gzip
import json
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]


def _layers(count: int) -> Any:
    value: Any = 1
    for _ in range(count):
        value = {"a": [value]}
    return value


def _doubled(times: int) -> Any:
    """Two to the power of ``times`` values, as aliases of aliases make them."""
    value: Any = [1]
    for _ in range(times):
        value = [value, value]
    return value


def _endless() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


# Whatever YAML can hold, Snakemake's loader being one that makes Python objects of some tags.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "one": 1,
    "fraction": 1.5,
    "1e308": 1e308,
    "10**30": 10**30,
    "4300 digits": 10**4299,
    "hexadecimal": int("f" * 6000, 16),
    "negative hexadecimal": -int("f" * 6000, 16),
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "no text": "",
    "blank": " ",
    "no items": [],
    "no keys": {},
    "letters": "é漢\U0001f98a",
    "control": "a\x1b[31m\x00\x07",
    "lines": "a\nb: c\r\n",
    "right to left": "\u202eabc\u2066",
    "half a pair": "\ud800",
    "up": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "long": "a" * 100_000,
    "long path": "/".join(["a" * 300] * 20),
    "many words": "x " * 50_000,
    "shell": "$(touch owned)",
    "variable": "$HOME",
    "unset variable": "$NO_SUCH_VARIABLE",
    "exponent": "1e999",
    "digits": "3",
    "braces": "{x}",
    "pathvar": "<results>",
    "items": [1, 2],
    "many items": list(range(5000)),
    "too many items": [0] * 200_000,
    "mixed": [None, "a", 1, {}],
    "nested": [[{}]],
    "a key": {"a": 1},
    "a number for a key": {1: 2},
    "odd key": {"\x1b[2J\u202e" + "k" * 3000: 1},
    "layers": _layers(2000),
    "doubled": _doubled(40),
    "endless": _endless(),
    "function": len,
    "tuple": (1,),
    "set": {1},
    "bytes": b"ab\xff",
    "date": datetime.date(2020, 1, 1),
}

KEYS: tuple[Any, ...] = (
    *("zzz", "", " ", "a.b", "\x1b[31mred", "\u202e", "\ud800", "a\nb", "k" * 5000),
    *("[key]", "list[x]", "literal[x]", "iskd", "source", "method", "pathvars"),
    *(1, 1.5, None, True, (1, 2), b"x", datetime.date(2020, 1, 1)),
)


def paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """Give the way to every key and item of a config."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, part in inner:
        yield (*above, key)
        yield from paths(part, (*above, key))


def at(config: Any, path: Path) -> Any:
    return functools.reduce(lambda value, key: value[key], path, config)


def other_values(config: Any, each: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Put each value to some places of a config, drawn from the seed."""
    rng, places = random.Random(seed), list(paths(config))
    for name, value in VALUES.items():
        for path in rng.sample(places, min(each, len(places))):
            changed = copy.deepcopy(config)
            at(changed, path[:-1])[path[-1]] = value
            yield f"{path} is {name}", changed


def missing_keys(config: Any) -> Iterator[tuple[str, Any]]:
    """Remove each key, and the first item of each list."""
    for path in paths(config):
        if isinstance(path[-1], int) and path[-1]:
            continue
        changed = copy.deepcopy(config)
        del at(changed, path[:-1])[path[-1]]
        yield f"{path} is gone", changed


def further_keys(config: Any, each: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Add each key at the top and in some sections, drawn from the seed."""
    rng = random.Random(seed)
    sections = [path for path in paths(config) if isinstance(at(config, path), dict)]
    for key in KEYS:
        for path in [(), *rng.sample(sections, min(each, len(sections)))]:
            changed = copy.deepcopy(config)
            at(changed, path)[key] = 1
            yield f"{path} has {key!r:.40}", changed


def damaged_bytes(data: bytes, times: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut, flip, insert, repeat and remove bytes at places drawn from the seed."""
    rng = random.Random(seed)
    odd = (
        b"\xff",
        b"\0",
        b"\t",
        b"'",
        b'"',
        b"{",
        b"]",
        b":",
        b"#",
        b"&a ",
        b"*a ",
        b"!!x ",
        b"\n",
    )
    for number in range(times):
        start, end = sorted(rng.sample(range(len(data) + 1), 2))
        end = min(end, start + 40)
        middle = (
            rng.choice(odd),
            bytes([rng.randrange(256)]) + data[start + 1 : end],
            data[start:end] * 2,
            b"",
        )[number % 4]
        yield f"damage {number} at {start}", data[:start] + middle + data[end:]
        if number % 4 == 0:
            yield f"cut off at {start}", data[:start]


def odd_yaml(text: bytes) -> dict[str, bytes]:
    """Give a config's text with what only a text can have: syntax, encoding, aliases, tags."""
    doubled = b"x0: &x0 {a: 1}\n" + b"".join(
        b"x%d: &x%d {a: *x%d, b: *x%d}\n" % (n, n, n - 1, n - 1) for n in range(1, 40)
    )
    return {
        "empty": b"",
        "blank": b"\n \n",
        "a comment": b"# study: tiny\n",
        "a list": b"- study\n- seeds\n",
        "a text": b"study\n",
        "a number": b"7\n",
        "null": b"null\n",
        "two documents": text + b"---\n" + text,
        "not UTF-8": text.replace(b"tiny", b"caf\xe9"),
        "UTF-16": text.decode().encode("utf-16"),
        "UTF-16 without a mark": text.decode().encode("utf-16-le"),
        "byte order mark": b"\xef\xbb\xbf" + text,
        "CRLF": text.replace(b"\n", b"\r\n"),
        "CR": text.replace(b"\n", b"\r"),
        "NUL": text + b"\0",
        "escape": text + b"# \x1b[31m\n",
        "tab": text.replace(b"  source", b"\tsource", 1),
        "open quote": text + b'x: "',
        "open bracket": text + b"x: [1, {",
        "open brackets": text + b"x: " + b"[" * 100_000,
        "JSON brackets": b"[" * 100_000,
        "no colon": text.replace(b"seeds:", b"seeds", 1),
        "a colon more": text.replace(b"seeds:", b"seeds: x:", 1),
        "a key twice": text + b"study: other\n",
        "a key twice below": text.replace(b"corpus:\n", b"corpus:\n  source: files\n"),
        "a key twice in an arm": text.replace(b"{method: l1}", b"{method: l1, method: kd}"),
        "alias of nothing": text + b"x: *nobody\n",
        "alias of itself": text + b"x: &x {y: *x}\n",
        "list of itself": text + b"x: &x [*x]\n",
        "aliases of aliases": text + doubled,
        "merge of a text": text + b"<<: study\n",
        "a list for a key": text + b"? [a, b]\n: 1\n",
        "a tuple for a key": text + b"? !!python/tuple [a, b]\n: 1\n",
        "a mapping for a key": text + b"? {a: b}\n: 1\n",
        "an object": text + b"x: !!python/object:os.system {}\n",
        "a call": text + b"x: !!python/object/apply:os.system ['touch owned']\n",
        "a function": text.replace(b"tiny", b"!!python/name:os.system", 1),
        "a set": text.replace(b"[3]", b"!!set {3}", 1),
        "bytes": text.replace(b"tiny", b"!!binary aGVsbG8=", 1),
        "bad bytes": text.replace(b"tiny", b"!!binary '\xc3\xa9'", 1),
        "an own tag": text.replace(b"tiny", b"!mine tiny", 1),
        "a date": text.replace(b"tiny", b"2020-01-01", 1),
        "no date": text.replace(b"tiny", b"2020-99-99", 1),
        "5000 digits": text.replace(b"[3]", b"[" + b"9" * 5000 + b"]", 1),
        "hexadecimal": text.replace(b"[3]", b"[0x" + b"f" * 5000 + b"]", 1),
        "base 60": text.replace(b"[3]", b"[1:30:00]", 1),
        "yes": text.replace(b"tiny", b"yes", 1),
        "escapes": text.replace(b"tiny", b'"\\ud800\\0\\e[31m"', 1),
        "odd key": text + b'"\\u202e\\e[31m": 1\n',
        "template": b"__use_yte__: true\n" + text,
        "broken template": b"__use_yte__: true\nx: ?foo(\n" + text,
        "template in a key": b"__use_yte__: true\n?if nobody:\n  x: 1\n" + text,
        "pathvars": text + b"pathvars: 3\n",
        "JSON": json.dumps({"study": "tiny"}).encode(),
        "JSON twice": b'{\n\t"study": "a",\n\t"study": "b"\n}',
        "gzip": gzip.compress(text),
        "a line of 3 MB": text + b"x: " + b"y" * 3_000_000 + b"\n",
    }


FIELD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 1.5, 10**400, float("nan"), float("inf"), "", " ", "é", "\ud800"),
    *("\x00\x1b[31m", "\u202e", "x" * 200_000, [], {}, [None], [1], ["x"], [["x"]], {"a": 1}),
    *(["a"] * 4, [""] * 4),
)


def _line(row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def odd_rows(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Give JSONL files that one good row was made into."""
    good = _line(row)
    head = good[:-2]
    yield from {
        "good": good,
        "cut off": good[:-10],
        "second row cut off": good + good[: len(good) // 2],
        "no line end": good.rstrip(),
        "empty": b"",
        "blank": b"\n \n\t\n",
        "not UTF-8": good.replace(b"a", b"\xff"),
        "UTF-16": good.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + good,
        "NUL before": b"\0" + good,
        "NULs after": good + b"\0" * 4096,
        "CRLF": good.replace(b"\n", b"\r\n"),
        "CR": good.replace(b"\n", b"\r") + good,
        "line separators": good.replace(b" ", b"\xe2\x80\xa8", 1),
        "open brackets": b"[" * 100_000 + b"\n",
        "nested too deep": head + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
        "nested deep": head + b', "x": ' + b"[" * 800 + b"]" * 800 + b"}\n",
        "NaN": head + b', "x": NaN}\n',
        "1e999": head + b', "x": 1e999}\n',
        "5000 digits": head + b', "x": ' + b"9" * 5000 + b"}\n",
        "a line of 3 MB": head + b', "x": "' + b"y" * 3_000_000 + b'"}\n',
        "a list": b"[1]\n",
        "a number": b"7\n",
        "null": b"null\n",
        "one array": b"[" + good.rstrip() + b"]\n",
        "two rows in a line": good.rstrip() + good,
        "indented": json.dumps(row, indent=1).encode(),
        "CSV": b"id,text\n1,one\n",
        "gzip": gzip.compress(good),
        "random": random.Random(1).randbytes(3000),
        "further fields": _line({**row, "\x1b": {"a": [{}]}, "": None}),
    }.items()
    for field in row:
        yield f"no {field}", _line({key: row[key] for key in row if key != field})
        yield f"{field} twice", head + b', "' + field.encode() + b'": 1}\n'
        for number, value in enumerate(FIELD_VALUES):
            yield f"{field} is value {number}", _line({**row, field: value})
