"""The only module that opens a connection: pinned snapshots from the Hugging Face hub.

What is fetched is named by a commit. Where the config leaves the commit out, the first prefetch
asks the hub for the newest one and writes it into the study's lock file; from then on the lock
decides.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock
from huggingface_hub import HfApi, get_session, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from iskd.data.model_folder import BLOCK_KEYS, MODEL_FILES
from iskd.errors import UserError
from iskd.provenance.artifact import canonical_json, write_text

log = logging.getLogger("iskd.hub")

# Seconds that the hub has to answer while a study is planned.
_PATIENCE = 20

RepoKind = Literal["model", "dataset"]

# What the hub's client raises: its HTTP library's errors, OSError, and ValueError for a bad id.
_HUB_ERRORS = cast(
    "tuple[type[Exception], ...]", (HfHubHTTPError, *HfHubHTTPError.__bases__, ValueError)
)


def _newest_commit(repo: str, kind: RepoKind) -> str:
    try:
        sha = HfApi().repo_info(repo, repo_type=kind, timeout=_PATIENCE).sha
    except _HUB_ERRORS as error:
        raise _fetching(repo, error) from error
    if not sha:
        raise UserError(f"{repo}: the hub names no commit; give a revision in the config")
    return sha


def locked_revision(
    repo: str,
    kind: RepoKind,
    revision: str | None,
    lock: Path,
    newest: Callable[[str, RepoKind], str] = _newest_commit,
) -> str:
    """Give the commit to fetch: the config's, else the lock's, else the newest, which is locked.

    Args:
        repo: hub id.
        kind: whether it is a model or a data set.
        revision: the commit the config names, or None.
        lock: the study's lock file; made when it is not there. Several jobs may use it at once.
        newest: asks the hub for its newest commit.

    Raises:
        UserError: the hub cannot be reached, or the lock file is broken.
    """
    if revision is not None:
        return revision
    key = f"{kind}:{repo}"
    known = _kept(lock, key, lambda: newest(repo, kind))
    return str(known)


def _kept(lock: Path, key: str, ask: Callable[[], Any]) -> Any:
    """Give what the lock file has under a key; where it has nothing, ask and write it down."""
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    mutex = lock.with_suffix(".mutex")
    try:
        with FileLock(mutex):
            known = _read_lock(lock)
            if key not in known:
                known[key] = ask()
                write_text(lock, canonical_json(known))
                log.info("locked %s: %s in %s", key, known[key], lock)
    except UserError:
        # A hub that does not answer leaves no trace.
        if made:
            mutex.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
        raise
    return known[key]


def locked_shape(repo: str, revision: str | None, lock: Path) -> dict[str, Any]:
    """Give a model's architecture and number of blocks, from its ``config.json`` at its commit.

    Args:
        repo: hub id.
        revision: the commit the config names, or None for the locked one.
        lock: the study's lock file, which keeps the answer.

    Returns:
        ``model_type``, and the number of blocks under the name that the model has for it

    Raises:
        UserError: the hub cannot be reached, or the lock file is broken.
    """
    commit = locked_revision(repo, "model", revision, lock)

    def ask() -> dict[str, Any]:
        config = _read_config(repo, commit)
        kept = ("model_type", *BLOCK_KEYS)
        return {key: config[key] for key in kept if key in config}

    return dict(_kept(lock, f"shape:{repo}@{commit}", ask))


def _read_config(repo: str, commit: str) -> dict[str, Any]:
    # Asked once: a plan that cannot reach the hub says so now, and not after five tries.
    url = hf_hub_url(repo, "config.json", revision=commit)
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_PATIENCE)
        hf_raise_for_status(answer)
        return dict(answer.json())
    except _HUB_ERRORS as error:
        raise _fetching(repo, error) from error


def _read_lock(lock: Path) -> dict[str, Any]:
    if not lock.exists():
        return {}
    try:
        known = json.loads(lock.read_bytes())
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise UserError(f"{lock}: broken; restore it, or remove it to lock the newest commits anew")
    return known


def _fetching(repo: str, error: Exception, keys: str = "the id and the revision") -> UserError:
    reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    return UserError(
        f"{repo} could not be fetched ({reason}); "
        f"run `snakemake prefetch` where the hub can be reached, and check {keys}"
    )


def fetch_model(repo: str, commit: str, folder: Path) -> None:
    """Fetch a model's config, tokenizer and safetensors weights at one commit into ``folder``.

    Raises:
        UserError: it cannot be fetched, or has no weights in safetensors.
    """
    try:
        snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=list(MODEL_FILES))
    except _HUB_ERRORS as error:
        raise _fetching(repo, error) from error
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{repo} has no weights in safetensors at {commit}; "
            f"choose a revision that has (pickled weights are never loaded)"
        )


def fetch_rows(
    repo: str, config: str | None, split: str, commit: str, rows: int | None
) -> Iterator[dict[str, Any]]:
    """Give the rows of a data set's split at one commit, from the front.

    Raises:
        UserError: it cannot be fetched.
    """
    # Slow to import, and only the download rules want it.
    from datasets import load_dataset

    try:
        dataset = load_dataset(repo, config, split=split, revision=commit, streaming=True)
        yield from islice(dataset, rows)
    except _HUB_ERRORS as error:
        raise _fetching(repo, error, "id, revision, config and split") from error


def fetch_texts(
    repo: str, split: str, commit: str, rows: int | None, config: str | None = None
) -> Iterator[str]:
    """Give the stories of a data set's split: the field ``text`` of :func:`fetch_rows`.

    Raises:
        UserError: it cannot be fetched, or a row has no text.
    """
    for number, row in enumerate(fetch_rows(repo, config, split, commit, rows), 1):
        text = row.get("text")
        if not isinstance(text, str):
            raise UserError(
                f"{repo}, row {number}: no field text (there are {', '.join(row)}); choose a data "
                f"set of stories with a field text"
            )
        yield text
