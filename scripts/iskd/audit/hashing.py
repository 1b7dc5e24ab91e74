"""Digests of many files, read by several threads, with a memory of those that have not changed."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import canonical_json, file_digest, write_text

Stamp = list[int]
"""A file's size in bytes, its time of change in nanoseconds, and its inode."""


def digest_files(paths: Iterable[Path], memory: "Memory | None" = None) -> dict[Path, str]:
    """Give the sha256 of each file's bytes.

    Args:
        paths: the files.
        memory: what is known from an earlier call and trusted; filled with what is read now.
    """
    wanted = list(dict.fromkeys(paths))
    known = {path: digest for path in wanted if memory and (digest := memory.digest(path))}
    # The largest first, so that no thread is left with them at the end.
    unread = sorted((p for p in wanted if p not in known), key=lambda p: -p.stat().st_size)
    # hashlib lets other threads run while it reads.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        read = dict(zip(unread, pool.map(file_digest, unread), strict=True))
    if memory:
        memory.learn(read)
    return known | read


class Memory:
    """Digests of files as they were, trusted as long as size, time of change and inode are.

    Attributes:
        trusted: how many digests were taken from it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.trusted = path, 0
        self._known: dict[str, tuple[Stamp, str]] = {}
        try:
            stored: Any = json.loads(path.read_text(encoding="utf-8"))
            self._known = {name: (list(stamp), str(d)) for name, (stamp, d) in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # none yet, or none that can be read: everything is read again

    def digest(self, path: Path) -> str | None:
        """Give what is known of a file, if it seems to be the same."""
        stamp, digest = self._known.get(str(path.resolve()), ([], ""))
        if not digest or stamp != _stamp(path):
            return None
        self.trusted += 1
        return digest

    def learn(self, read: dict[Path, str]) -> None:
        """Take in what was read, and write it down."""
        self._known |= {str(p.resolve()): (_stamp(p), digest) for p, digest in read.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, canonical_json(self._known))


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino]
