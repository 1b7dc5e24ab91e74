"""`iskd verify` on 1,000 artifacts with 10 GB of weights, against reading and hashing them once.

    python -m tests.benchmarks.verify_large FOLDER [--seeds 49] [--gigabytes 10]

The smallest study is made once; its trainings and evaluations are then given to many seeds, by
statements that the plan of such a study asks for, with weights made larger. Snakemake makes the
rest of it (numbers, figures, tables, cards), so that nothing is to be found in it.
"""

import argparse
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from iskd.audit.folder import recorded_config
from iskd.audit.planned import Planned, Planning
from iskd.audit.rederive import is_cheap
from iskd.audit.verify import verify
from iskd.provenance.artifact import (
    MANIFEST,
    RUN,
    file_digest,
    input_names,
    produced,
    read_manifest,
    text_digest,
    write_text,
)
from iskd.provenance.environment import LOCK
from iskd.provenance.statement import Statement, canonical_json, write_statement
from tests.workflow.conftest import TINY, Clone, make_clone

WEIGHTS = "model.safetensors"
STUDY = "results/tiny"
ROUNDS = 5


def main() -> None:
    """Make the study if it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=49)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    args = parser.parse_args()
    study = args.folder / "large" / STUDY
    if not study.exists():
        make(args.folder, args.seeds, args.gigabytes * 1e9)
    measure(study, args.folder / "digests.json")


def make(folder: Path, seeds: int, size: float) -> None:
    """Make a study of many seeds out of one of a single seed."""
    small = make_clone(folder / "small")
    done = small.snakemake(*TINY)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(recorded_config(small.folder / STUDY))
    config["seeds"] = list(range(3, 3 + seeds))
    draft = make_clone(folder / "draft")
    (draft.folder / "large.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    plan = Planning(draft.folder / "large.yaml").finish()
    kept = {place: job for place, job in plan.items() if not is_cheap(job.request["rule"])}
    models = [p for p in kept if (small.folder / STUDY / _origin(p) / WEIGHTS).exists()]
    print(f"{len(plan)} artifacts, {len(models)} of them with weights")
    for job in _in_order(kept):
        _give(small, draft, job, int(size / len(models)))
    done = draft.snakemake("-c", "all", "--configfile", "large.yaml")
    assert done.returncode == 0, done.stderr
    draft.folder.rename(folder / "large")


def _origin(place: str) -> str:
    """Name the artifact of the one seed that an artifact of another seed is a copy of."""
    return "/".join("seed_3" if p.startswith("seed_") else p for p in place.split("/"))


def _in_order(plan: dict[str, Planned]) -> Iterator[Planned]:
    """Give each artifact after those that it is made from."""
    left = dict(plan)
    while left:
        for place in list(left):
            sources = {"/".join(file.parts[2:-1]) for file in left[place].read}
            if not sources & (left.keys() - {place}):
                yield left.pop(place)


def _give(small: Clone, draft: Clone, job: Planned, size: int) -> None:
    """Copy an artifact under another seed, make its weights larger, and write its statement."""
    origin, target = small.folder / STUDY / _origin(job.place), draft.folder / STUDY / job.place
    shutil.copytree(origin, target)
    old = read_manifest(origin)
    summary = dict(old.summary)
    if (target / WEIGHTS).exists():
        tensors = load_file(target / WEIGHTS)
        more = torch.randn((size - (target / WEIGHTS).stat().st_size) // 4)
        summary["parameters"] = summary["parameters"] + more.numel()
        save_file(tensors | {"more": more}, target / WEIGHTS, {"format": "pt"})
    inputs = {}
    for name, path in input_names(job.read, lambda f: True).items():
        inputs[name] = {"sha256": file_digest(draft.folder / path)}
        if path.name == MANIFEST:
            inputs[name]["artifact"] = read_manifest(draft.folder / path).artifact
    files = {name: produced(target / name) for name in old.files}
    request = job.request | {"inputs": inputs, "lock": file_digest(LOCK)}
    text = write_statement(Statement(request, files, summary))
    write_text(target / MANIFEST, text)
    run = yaml.safe_load((target / RUN).read_text(encoding="utf-8"))
    write_text(target / RUN, canonical_json(run | {"statement": text_digest(text)}))


def measure(study: Path, memory: Path) -> None:
    """Verify and hash in turn."""
    files = sorted(path for path in study.rglob("*") if path.is_file())
    random.Random(1).shuffle(files)
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files) / 1e9:.2f} GB")

    def hashed() -> None:
        for file in files:
            file_digest(file)

    def verified(*, derive: bool = True, remembered: Path | None = None) -> None:
        verdict = verify(study, derive=derive, memory=remembered)
        assert not verdict.findings, verdict.as_text()

    memory.unlink(missing_ok=True)
    verified(remembered=memory)
    rows: dict[str, list[float]] = {"verify": [], "verify --fast": [], "verify --trust": []}
    for _ in range(ROUNDS):
        once = _seconds(hashed)
        rows["verify"].append(_seconds(verified) / once)
        rows["verify --fast"].append(_seconds(lambda: verified(derive=False)) / once)
        trusting = _seconds(lambda: verified(derive=False, remembered=memory))
        rows["verify --trust"].append(trusting / once)
        print(f"hashed once in {once:.1f} s", flush=True)
    for name, ratios in rows.items():
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name}: {middle:.2f} times hashing once ({low:.2f} to {high:.2f})")


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
