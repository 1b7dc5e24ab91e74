"""The request of a job: the dict that defines its artifact, as the manifest records it."""

import sys
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, file_digest, input_names, read_manifest
from iskd.provenance.environment import LOCK
from iskd.provenance.fingerprint import SCRIPTS
from iskd.provenance.statement import StatementError
from iskd.runtime.task import SnakemakeObject

# The folder of collect_paper, the one whose name is not its rule's.
PAPER = "paper"
# Parameters of a rule that say how it is tracked, not what it computes.
_TRACKING = ("code", "script", "seed")


def rule_name(task: SnakemakeObject) -> str:
    """Give the rule's own name, whatever a workflow that uses this one as a module calls it.

    Args:
        task: Snakemake's object.

    Raises:
        SystemExit: the script does not run with the library beside it, whose digest is recorded.
    """
    # Snakemake runs a copy of the script and tells it where the original lies.
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if (script.parent / "iskd").is_dir() and not script.parent.samefile(SCRIPTS):
        sys.exit(
            f"{task.rule}: the library is imported from {SCRIPTS} and not from beside the "
            f"script, {script.parent}; let PYTHONPATH begin with the latter"
        )
    return script.stem if (SCRIPTS / script.name).is_file() else str(task.rule)


def top_folder(folder: Path, rule: str) -> Path:
    """Find the folder that holds ``results``.

    Args:
        folder: an artifact's folder.
        rule: the rule that makes the artifact.

    Returns:
        the prefix, where the workflow is used as a module; otherwise the working directory
    """
    for place, part in enumerate(folder.parts[:-2]):
        # A prefix may have any name.
        if part == "results" and folder.parts[place + 2] in (rule, PAPER):
            return Path(*folder.parts[:place])
    return Path()


def request_of(task: SnakemakeObject, params: dict[str, Any], rule: str) -> dict[str, Any]:
    """Give what defines the artifact of a job.

    Args:
        task: Snakemake's object.
        params: its parameters.
        rule: the rule's own name.
    """
    top = top_folder(Path(task.output.manifest).parent, rule)
    return {
        "rule": rule,
        "wildcards": dict(task.wildcards.items()),
        "parameters": {k: v for k, v in params.items() if k not in _TRACKING},
        "seed": params.get("seed"),
        "inputs": _input_digests(dict(task.input.items()), top),
        "code": params["code"],
        "lock": file_digest(LOCK),
    }


def _input_digests(inputs: dict[str, Any], top: Path) -> dict[str, dict[str, str]]:
    """Give the sha256 of each manifest, and of each raw file that belongs to no artifact.

    Weights and other big files of an artifact are named with digest in its manifest already, and
    the digest of all its files stands beside the manifest's own.
    """
    paths = [
        Path(item)
        for value in inputs.values()
        for item in ([value] if isinstance(value, str | Path) else value)
    ]
    names = input_names(paths, lambda path: (path.parent / MANIFEST).exists(), top)
    return {name: _input_digest(path) for name, path in names.items()}


def _input_digest(path: Path) -> dict[str, str]:
    digest = {"sha256": file_digest(path)}
    if path.name == MANIFEST:
        try:
            digest["artifact"] = read_manifest(path).artifact
        except StatementError as error:
            raise UserError(
                f"{path} {error}; delete {path.parent} and call snakemake again"
            ) from error
    return digest
