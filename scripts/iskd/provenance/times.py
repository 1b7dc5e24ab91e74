"""Put times back in order that a copy or a checkout has mixed up.

Where Snakemake has no record of its own of a result (a fresh clone, into which somebody has copied
the results), it goes by times alone, and those of a copy follow the order of copying. Manifests
know better: an artifact whose inputs have the digests that its manifest names is not older than
they are, whatever the clock says.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iskd.provenance.artifact import MANIFEST, file_digest, read_manifest


@dataclass(frozen=True)
class _Artifact:
    files: list[Path]
    inputs: dict[Path, str]
    """The inputs that can be found here, with the sha256 they had."""
    all_found: bool

    def older_than_inputs(self) -> bool:
        oldest = min(file.stat().st_mtime_ns for file in self.files)
        return any(file.stat().st_mtime_ns > oldest for file in self.inputs)


def _input_file(name: str, top: Path) -> Path:
    """Find an input: one of the study, or a local file, named from the working directory on."""
    return top / name if name.startswith("results/") else Path(name)


def _artifacts(study: Path) -> Iterator[_Artifact]:
    top = study.parents[1]  # names begin with `results`
    for manifest in sorted(study.rglob(MANIFEST)):
        # What a running or a killed job has in hand: `.<name>.partial`, `.<name>.work`.
        if any(part.startswith(".") for part in manifest.relative_to(study).parts):
            continue
        try:
            statement = read_manifest(manifest)
        except (OSError, ValueError):
            continue  # no manifest of ours: leave the folder alone
        # A file that is an input twice stands there twice, the second time as `... #2`.
        inputs = {
            _input_file(re.sub(r" #\d+$", "", name), top): about["sha256"]
            for name, about in statement.request["inputs"].items()
        }
        here = {file: digest for file, digest in inputs.items() if file.is_file()}
        # A rule may have copies of its files beside the artifacts, as metrics.csv.
        copies = [
            study / name
            for name, about in statement.files.items()
            if (study / name).is_file() and file_digest(study / name) == about.sha256
        ]
        files = [file for file in manifest.parent.iterdir() if file.is_file()]
        # To Snakemake a job's benchmark is an output like the others.
        place = manifest.parent.relative_to(study)
        benchmarks = [study / "benchmarks" / place.with_name(f"{place.name}.jsonl")]
        own = [*files, *copies, *(file for file in benchmarks if file.is_file())]
        yield _Artifact(own, here, all_found=len(here) == len(inputs))


def settle_times(study: Path) -> int:
    """Give all artifacts that fit their inputs one time, if some of them seem to be outdated.

    An artifact whose inputs have changed, or cannot be found, keeps its time and so stays older
    than they are.

    Args:
        study: the study's folder of results, ``results/<study>`` or that below a prefix, relative
            to the working directory.

    Returns:
        how many artifacts got a new time
    """
    digests: dict[Path, str] = {}

    def unchanged(file: Path, digest: str) -> bool:
        if file not in digests:
            digests[file] = file_digest(file)
        return digests[file] == digest

    def fits(artifact: _Artifact) -> bool:
        return artifact.all_found and all(unchanged(*item) for item in artifact.inputs.items())

    # Files may come and go meanwhile: another call of Snakemake may be at work here.
    with suppress(FileNotFoundError):
        artifacts = list(_artifacts(study))
        # Nothing big is read as long as all times are in order.
        if not any(fits(artifact) for artifact in artifacts if artifact.older_than_inputs()):
            return 0
        fitting = [artifact for artifact in artifacts if fits(artifact)]
        now = time.time_ns()
        for artifact in fitting:
            for file in artifact.files:
                with suppress(PermissionError):
                    os.utime(file, ns=(now, now))
        return len(fitting)
    return 0
