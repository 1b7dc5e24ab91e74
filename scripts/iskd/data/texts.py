"""Stories in JSONL files: one object with a field ``text`` per line. Standard library only."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from iskd.data.rows import sample_indices
from iskd.errors import UserError


def read_texts(path: Path) -> list[str]:
    """Read the stories of a JSONL file, in order.

    Raises:
        UserError: the file is empty or not UTF-8, a line is not JSON, or a text is missing.
    """
    texts = list(stream_texts(path))
    if not texts:
        raise UserError(f"{path.name}: empty; one JSON object with a field text per line is needed")
    return texts


def stream_texts(path: Path) -> Iterator[str]:
    """Give the stories of a JSONL file one by one, so that memory holds only one of them.

    Raises:
        UserError: the file cannot be read or is no UTF-8, a line is no JSON, or a text is missing.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _text_of(line, f"{path.name}, line {number}")
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path.name}: cannot be read ({error.strerror}); give the path of a JSONL file"
        ) from None


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a number of too many digits is a plain ValueError
        raise UserError(f"{where}: not a JSON object; mend or remove the line") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{where}: no field text (a string); add it or remove the line")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half of a surrogate pair, which is no character; remove it"
        ) from None
    return text


def write_texts(texts: Iterable[str], path: Path) -> None:
    """Write stories as JSONL, as :func:`read_texts` reads them."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def split_texts(texts: list[str], heldout_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split stories into training and held-out ones, each in the original order.

    Equal stories fall on the same side, so that nothing held out was trained on.

    Raises:
        UserError: too few different stories to have some on either side.
    """
    distinct = sorted(set(texts))
    count = round(len(distinct) * heldout_share)
    if not 0 < count < len(distinct):
        raise UserError(
            f"{len(distinct)} different stories are too few for a held-out share of "
            f"{heldout_share}; give more stories or another share"
        )
    heldout = set(random.Random(seed).sample(distinct, count))
    return [t for t in texts if t not in heldout], [t for t in texts if t in heldout]


def draw_texts(texts: list[str], rows: int | None, seed: int) -> list[str]:
    """Draw texts with a seed, in the order they had; empty ones are left out first.

    Args:
        texts: to draw from.
        rows: how many; None for all of them.
        seed: seed of the draw.

    Raises:
        UserError: ``rows`` is below 1.
    """
    # Data sets of lines (wikitext) have many that are empty.
    nonempty = [text for text in texts if text.strip()]
    if rows is None:
        return nonempty
    return [nonempty[index] for index in sample_indices(len(nonempty), rows, seed)]
