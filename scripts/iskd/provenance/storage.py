"""What the operating system refuses while a job reads and writes, in one line that says what to do.

Each library has its own way to report a full disk: Python by an OSError, those written in Rust by
a text that ends in ``(os error 28)``, torch by an internal check of its file writer that failed.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from iskd.errors import UserError

_AGAIN = "then call snakemake again"
_NO_PERMISSION = ("no permission", f"check owner and mode of it and its folder, {_AGAIN}")
# By error number: what is wrong, and the remedy.
_FAULTS = {
    errno.ENOSPC: ("the disk is full", f"free some space, {_AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or have it raised, {_AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"have it mounted for writing, {_AGAIN}"),
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EIO: ("the disk fails (input/output error)", f"have it checked, {_AGAIN}"),
    errno.ESTALE: ("the file server has lost it (stale handle)", f"check the mount, {_AGAIN}"),
    errno.ENOLCK: ("the file system gives no locks", f"put results/ on one that does, {_AGAIN}"),
}
_LEAVE = f"leave the hidden folders below results/ alone while snakemake runs, {_AGAIN}"
_GONE = (errno.ENOENT, errno.ENOTDIR)
# Nobody handles these and goes on to fail for another reason, so that they explain what follows.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_RUST = re.compile(r"\(os error (\d+)\)(?: at path \"(.+)\")?")
_TORCH_OPEN = re.compile(r"strerror: (.+)")
# torch's writer does not say why; who reads this asks the folders instead.
_TORCH = re.compile(r"inline_container\.cc|iostream error|^Parent directory .* does not exist")
_UNKNOWN = 0

_PROBE = bytes(2**16)


def storage_fault(error: BaseException, folders: Sequence[Path]) -> str | None:
    """Say in one line what the file system refused, if that is what an error is about.

    Args:
        error: what was raised, by whichever library.
        folders: those that the job writes to, and which were there when it began.

    Returns:
        what is wrong, the path, and what to do; None for an error of another kind
    """
    found = _number_and_path(error)
    if found is None:
        return None
    number, path = found
    if number in (*_GONE, _UNKNOWN):
        gone = [folder for folder in folders if not folder.is_dir()]
        if gone:
            return f"{gone[0].as_posix()} was removed while the job ran; {_LEAVE}"
    if path is None:
        # A write that fails names no file: ask each folder, and the one of temporary files.
        for folder in [*folders, Path(tempfile.gettempdir())]:
            refusal = _refusal(folder)
            if refusal in _FAULTS and number in (refusal, _UNKNOWN):
                number, path = refusal, folder.as_posix()
                break
    if number == _UNKNOWN:
        return f"a file could not be written ({_first_line(error)}); is a disk full?"
    if number not in _FAULTS or (path is None and number not in _FATAL):
        return None  # without a path it may be a socket that was refused
    what, cure = _FAULTS[number]
    where = path or " or ".join(folder.as_posix() for folder in folders) or _first_line(error)
    return f"{what}: {where}; {cure}"


@contextmanager
def translate_storage_errors(folders: Sequence[Path] = ()) -> Iterator[None]:
    """Turn what the file system refuses into an error of one line; let any other error pass.

    Args:
        folders: see :func:`storage_fault`.

    Raises:
        UserError: the disk is full, read-only, or a folder has gone.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fault = storage_fault(error, folders)
        if fault is None:
            raise
        raise UserError(fault) from error


def _number_and_path(error: BaseException) -> tuple[int, str | None] | None:
    """Find the system's error number in an error or in what it came from, and the path."""
    found = _own(error)
    if found is not None:
        return found
    if error.__cause__ is not None:
        return _number_and_path(error.__cause__)
    if error.__context__ is not None and not error.__suppress_context__:
        found = _number_and_path(error.__context__)
        if found is not None and found[0] in _FATAL:
            return found
    return None


def _own(error: BaseException) -> tuple[int, str | None] | None:
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename
        return error.errno, os.fsdecode(path) if isinstance(path, str | bytes | Path) else None
    text = str(error)
    if rust := _RUST.search(text):
        return int(rust[1]), rust[2]
    if opened := _TORCH_OPEN.search(text):
        return next((n for n in _FAULTS if os.strerror(n) == opened[1].strip()), _UNKNOWN), None
    return (_UNKNOWN, None) if _TORCH.search(text) else None


def _refusal(folder: Path) -> int | None:
    """Write a little into a folder and take it away again: the error's number, if that fails."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(_PROBE)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.errno
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
