"""What a job ran in: code, packages, processor, and the switches that change its numbers."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]
LOCK = CHECKOUT / "envs" / "requirements.lock"

CODE_FOLDERS = ("scripts", "workflow", "envs")
PLAN = "tools/plan.py"
"""The one tool that the library calls: `iskd verify` plans a study with it."""
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "lm-eval", "seaborn")
# Nothing else of the environment is written down: other variables hold secrets.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"),
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
    *("PYTHONHASHSEED", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"),
)


def git(*arguments: str) -> str | None:
    """Ask git about the checkout that this code lies in; None where it knows nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, fixed arguments
            ["git", "-C", str(CHECKOUT), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_files(checkout: Path = CHECKOUT) -> Iterator[str]:
    """List all code of a checkout: library, scripts, workflow, lock, the tool that plans.

    Yields:
        Names below the checkout, folder by folder, sorted; what was made from code is left out.
    """
    for folder in CODE_FOLDERS:
        for path in sorted((checkout / folder).rglob("*")):
            parts = path.relative_to(checkout).parts
            made = any(
                part.startswith((".", "__pycache__")) or "egg-info" in part for part in parts
            )
            if path.is_file() and not made:
                yield "/".join(parts)
    # Before it lay there, it was a part of the workflow.
    if (checkout / PLAN).is_file():
        yield PLAN


def tree_digest(checkout: Path = CHECKOUT) -> str:
    """Give the sha256 over the names and bytes of all code: see :func:`code_files`.

    A rule's own digest (``iskd.provenance.fingerprint``) decides on reruns and is blind to
    comments; this one tells apart any two checkouts whose code differs, be it in a comment.
    """
    digest = hashlib.sha256()
    for name in code_files(checkout):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256((checkout / name).read_bytes()).digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Describe what this process runs in, as far as anything here may change a number.

    Returns:
        ``code``: digest of the whole checkout, git's commit, and whether tracked files differ from
        it; ``versions``; ``host``: machine, system, and the vector instructions that torch uses;
        ``cuda``: version of CUDA and of cuDNN where a GPU is used; ``variables``: those of
        the environment that change numbers.
    """
    torch = sys.modules.get("torch")
    changes = git("status", "--porcelain", "--untracked-files=no")
    host = {"machine": platform.machine(), "system": platform.system()}
    cuda = None
    if torch is not None:
        host["vectors"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "git": {
            "commit": git("rev-parse", "HEAD"),
            "modified": None if changes is None else bool(changes),
        },
        "code": tree_digest(),
        "versions": versions(),
        "host": host,
        "cuda": cuda,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
