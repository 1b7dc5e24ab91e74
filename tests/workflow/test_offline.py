"""Only the download rules open a connection: `prefetch` from a stand-in hub, then no network.

The hub's real clients fetch from a server of our own, which is gone before anything is computed.
"""

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from iskd.data.corpus import train_tokenizer
from iskd.data.toyworld import make_toyworld
from iskd.models.scratch import fresh_model, scratch_config
from iskd.provenance.artifact import read_manifest

from ..hub_standin import HubStandin
from .conftest import Clone, make_clone, without_network

pytestmark = pytest.mark.slow

RESULTS = Path("results/hubbed")
CALL = ("--configfile", "hubbed.yaml", "-c", "2")
DOWNLOADS = {"download_model", "download_reference", "download_corpus", "download_task"}
DOWNLOADS |= {"download_text"}
NOWHERE = "0" * 40

# A data set whose README names its files, as cam-cst/cbt's does.
CBT_README = b"""---
configs:
- config_name: CN
  data_files: [{split: test, path: CN/test-*}]
- config_name: V
  data_files: [{split: test, path: V/test-*}]
---
Two kinds of word.
"""

# lm-eval's task arc_easy reads this data set, by this name.
ARC_README = """\
---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: ARC-Easy/train-*}
  - {split: test, path: ARC-Easy/test-*}
---
"""


def arc_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(number),
            "question": f"Which one is number {number}?",
            "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number in range(count)
    ]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def saved_model(folder: Path, texts: list[str], blocks: int, **options: Any) -> dict[str, bytes]:
    """Make a GPT-2 with random weights and a tokenizer of its own, as files of a repository."""
    tokenizer = train_tokenizer(texts, 384, 256)
    shape = {"blocks": blocks, "width": 32, "heads": 2, "mlp": None}
    config = scratch_config(
        "gpt2", shape, vocabulary=len(tokenizer), positions=256, end_token=tokenizer.eos_token_id
    )
    fresh_model(config, seed=blocks).save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubStandin:
    """Repositories of the kinds that the paper's study names, in small."""
    folder = tmp_path_factory.mktemp("hub")
    world = make_toyworld(seed=1, stories=60, heldout_stories=30, cloze_rows=6, continuation_rows=6)
    hub = HubStandin(folder / "repositories")
    texts = [{"text": text} for text in [*world.train, *world.heldout]]
    hub.publish("dataset", "standin/stories", {"train.jsonl": json_lines(texts)})
    hub.publish(
        "dataset",
        "standin/hellaswag",
        {"data/validation-00000-of-00001.parquet": parquet(world.hellaswag)},
    )
    cbt = {"README.md": CBT_README, "CN/test-00000-of-00001.parquet": parquet(world.cbt)}
    cbt["V/test-00000-of-00001.parquet"] = parquet(world.cbt[:1])
    hub.publish("dataset", "standin/cbt", cbt)
    arc = {"README.md": ARC_README.encode(), "ARC-Easy/train-0.parquet": parquet(arc_rows(4))}
    arc["ARC-Easy/test-0.parquet"] = parquet(arc_rows(9))
    hub.publish("dataset", "allenai/ai2_arc", arc)
    # What is unpickled or run lies beside the weights in many a repository.
    harmful = {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit('was run')"}
    small = saved_model(folder / "small", world.train, 3)
    hub.publish("model", "standin/small", small | harmful)
    # In several files, as large models are.
    distilled = saved_model(folder / "distilled", world.train, 2, max_shard_size="40KB")
    assert len([name for name in distilled if name.endswith(".safetensors")]) > 1
    hub.publish("model", "standin/distilled", distilled | harmful)
    return hub


def study(hub: HubStandin) -> dict[str, Any]:
    """Give a study like the paper's: all from the hub, the CBT's commit left open."""
    pinned = {repo: commit for (_, repo), commit in hub.newest.items()}
    return {
        "study": "hubbed",
        "seeds": [3],
        "corpus": {
            "source": "hub",
            "dataset": "standin/stories",
            "revision": pinned["standin/stories"],
            "heldout_share": 0.3,
            "block_length": 64,
        },
        "teachers": {
            "small": {
                "family": "gpt2",
                "source": "hub",
                "model": "standin/small",
                "revision": pinned["standin/small"],
                "blocks": 3,
                "compact": {"width": 8, "heads": 2, "blocks": 2, "mlp": 32},
                "order": [1],
                "training": {"batch_size": 16},
            }
        },
        "arms": {
            "iskd": {"method": "iskd"},
            "distilled": {
                "method": "hub",
                "teacher": "small",
                "model": "standin/distilled",
                "revision": pinned["standin/distilled"],
            },
        },
        "tasks": {
            "hellaswag": {
                "source": "hub",
                "dataset": "standin/hellaswag",
                "revision": pinned["standin/hellaswag"],
                "split": "validation",
                "rows": 3,
            },
            "cbt_context": {
                "source": "hub",
                "dataset": "standin/cbt",
                "config": "CN",
                "split": "test",
                "rows": 3,
            },
            # As lm-eval has it, the data set's commit left open too.
            "arc_easy": {"source": "lm_eval", "rows": 5, "fewshot": 1},
        },
        "texts": {
            "elsewhere": {
                "source": "hub",
                "dataset": "standin/stories",
                "revision": pinned["standin/stories"],
                "split": "train",
                "rows": 20,
            }
        },
        "generation": {"prompts": 2, "prompt_tokens": 8, "new_tokens": 8},
        "evaluation": {
            "efficiency": {"prompt_tokens": 8, "new_tokens": 2, "repeats": 3, "warmup": 1}
        },
    }


def clone_with(folder: Path, config: dict[str, Any]) -> Clone:
    clone = make_clone(folder)
    (folder / "hubbed.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return clone


# Python imports this at its start. It notes how the process stood towards the hub at its end.
NOTED = """
import atexit, json, os, pathlib, sys

def note():
    hub = sys.modules.get("huggingface_hub.constants")
    text = json.dumps({
        "script": sys.argv[0],
        "switch": os.environ.get("HF_HUB_OFFLINE"),
        "offline": None if hub is None else hub.HF_HUB_OFFLINE,
    })
    pathlib.Path(os.environ["NOTES"], f"{os.getpid()}.json").write_text(text)

if "NOTES" in os.environ:
    atexit.register(note)
"""


def call(
    clone: Clone, hub: HubStandin, *arguments: str, network: bool = True
) -> subprocess.CompletedProcess[str]:
    """Call Snakemake with the stand-in as the hub, and with no cache that anybody has filled."""
    notes = clone.folder / "notes"
    notes.mkdir(exist_ok=True)
    (notes / "sitecustomize.py").write_text(NOTED, encoding="utf-8")
    return clone.snakemake(
        *arguments,
        prefix=() if network else without_network() or (),
        HF_ENDPOINT=hub.url,
        HF_HOME=str(clone.folder / ("cache" if network else "no cache")),
        NO_PROXY="127.0.0.1",
        NOTES=str(notes),
        PYTHONPATH=str(notes),
    )


def rules_by_switch(clone: Clone) -> dict[str, set[str]]:
    """Name the rules whose scripts have run, by how they stood towards the hub."""
    found: dict[str, set[str]] = {"offline": set(), "online": set()}
    for file in (clone.folder / "notes").glob("*.json"):
        note = json.loads(file.read_text(encoding="utf-8"))
        script = re.fullmatch(r"tmp\w+\.(\w+)\.py", Path(note["script"]).name)
        if script is None:
            continue  # Snakemake itself
        assert note["offline"] in (None, note["switch"] == "1")
        found["offline" if note["switch"] == "1" else "online"].add(script[1])
    return found


@pytest.fixture(scope="module")
def prefetched(hub: HubStandin, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `snakemake prefetch`; the server is gone."""
    clone = clone_with(tmp_path_factory.mktemp("prefetched") / "clone", study(hub))
    with hub.serving():
        done = call(clone, hub, "prefetch", *CALL)
    assert done.returncode == 0, done.stderr[-4000:]
    return clone


@pytest.fixture
def another(prefetched: Clone, tmp_path: Path) -> Clone:
    """A copy of what was prefetched, to change."""
    return prefetched.copy(tmp_path / "another")


def test_prefetch_fetches_the_pinned_commits_and_nothing_that_is_run(
    hub: HubStandin, prefetched: Clone
) -> None:
    top = prefetched.folder / RESULTS
    commits = {
        "standin/small": "download_model/small",
        "standin/distilled": "download_reference/distilled",
        "standin/stories": "download_corpus",
        "standin/hellaswag": "download_task/hellaswag",
        "standin/cbt": "download_task/cbt_context",
        "allenai/ai2_arc": "download_task/arc_easy",
    }
    newest = {repo: commit for (_, repo), commit in hub.newest.items()}
    for repo, place in commits.items():
        assert read_manifest(top / place).summary["commit"] == newest[repo]
    locked = json.loads((top / "hub.lock.json").read_text(encoding="utf-8"))
    assert locked == {
        f"dataset:{repo}": newest[repo] for repo in ("standin/cbt", "allenai/ai2_arc")
    }
    assert [line for line in hub.requests if re.search(r"\.(bin|py)$", line)] == [
        # `datasets` looks whether a data set has a script, which it would refuse to run.
        line
        for line in hub.requests
        if re.fullmatch(r"HEAD /datasets/\w+/(\w+)/resolve/\w+/\1\.py", line)
    ]
    fetched = top / "download_reference/distilled"
    model = AutoModelForCausalLM.from_pretrained(fetched, local_files_only=True)
    assert sorted(file.name for file in fetched.glob("*.safetensors*")) == ["model.safetensors"]
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def test_after_prefetch_the_study_needs_no_network(hub: HubStandin, prefetched: Clone) -> None:
    before = len(hub.requests)
    done = call(prefetched, hub, *CALL, network=False)
    assert done.returncode == 0, done.stderr[-4000:]
    paper = prefetched.folder / RESULTS / "paper"
    names = {file.name for file in paper.iterdir()}
    assert {"figure_tradeoff_small.pdf", "figure_tradeoff_small.png", "table_main.tex"} <= names
    table = (paper / "table_main.csv").read_text(encoding="utf-8")
    assert "iskd" in table
    assert "distilled" in table
    assert len(hub.requests) == before
    assert not (prefetched.folder / "no cache").exists()
    # What has no switch set could have queried the hub, if there had been one.
    rules = rules_by_switch(prefetched)
    assert rules["online"] == DOWNLOADS
    assert rules["offline"] == {
        "split_corpus",
        "prepare_corpus",
        "prepare_task",
        "plan_substitutions",
        "substitute_block",
        "evaluate",
        "evaluate_heldout",
        "prepare_text",
        "generate",
        "measure_overlap",
        "measure_efficiency",
        *("collect_metrics", "collect_measurements", "summarize", "model_card"),
        *("figure_tradeoff", "figure_loss", "figure_pareto"),
        *("figure_training", "figure_flips", "figure_order"),
        *("table_main", "table_significance", "table_ablation", "table_efficiency", "table_costs"),
        *("paper_numbers", "paper_measured_numbers", "collect_paper", "paper_bundle"),
    }
    metrics = (prefetched.folder / RESULTS / "metrics.csv").read_text(encoding="utf-8")
    assert ",arc_easy,acc_norm_difference," in metrics
    assert ",elsewhere,kl," in metrics


def test_the_lock_outlives_a_newer_commit(hub: HubStandin, another: Clone) -> None:
    place = RESULTS / "download_task/cbt_context"
    manifest = (another.folder / place / "manifest.json").read_bytes()
    rows = (another.folder / place / "rows.jsonl").read_bytes()
    locked = hub.newest["dataset", "standin/cbt"]
    try:
        moved = {"README.md": CBT_README, "CN/test-00000-of-00001.parquet": parquet([{"new": 1}])}
        assert hub.publish("dataset", "standin/cbt", moved) != locked
        hub.requests.clear()
        with hub.serving():
            done = call(another, hub, str(place / "manifest.json"), "--force", *CALL)
    finally:
        hub.newest["dataset", "standin/cbt"] = locked
    assert done.returncode == 0, done.stderr[-4000:]
    assert hub.requests
    assert all(locked in line for line in hub.requests)
    assert (another.folder / place / "manifest.json").read_bytes() == manifest
    assert (another.folder / place / "rows.jsonl").read_bytes() == rows


def errors_of(done: subprocess.CompletedProcess[str], rule: str) -> list[str]:
    """Give the errors of a failed rule, each line once; there must be no traceback with it."""
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed[-4000:]
    assert "Traceback" not in printed
    lines = re.findall(rf"^{rule}: (.+)$", printed, re.MULTILINE)
    return list(dict.fromkeys(lines))


def test_without_prefetch_and_network_the_study_ends_in_one_line(
    hub: HubStandin, tmp_path: Path
) -> None:
    clone = clone_with(tmp_path / "clone", study(hub))
    done = call(clone, hub, *CALL, network=False)
    errors = {rule: errors_of(done, rule) for rule in DOWNLOADS}
    failed = [lines for lines in errors.values() if lines]
    assert failed
    for line in (line for lines in failed for line in lines):
        assert re.match(
            r"(standin|allenai)/\w+ could not be fetched \(.+\); run `snakemake prefetch`", line
        )
    # Three tasks are fetched by one rule; everything else has one line to say.
    assert all(
        len(lines) == 1 for rule, lines in errors.items() if rule != "download_task" and lines
    )
    assert not list((clone.folder / RESULTS).rglob("manifest.json"))


class Missing(NamedTuple):
    """Something that a config names and the hub has not."""

    rule: str
    name: str
    section: str
    change: dict[str, str]
    repo: str
    remedy: str


@pytest.mark.parametrize(
    "missing",
    [
        Missing("download_model", "small", "teachers", {"revision": NOWHERE}, "small", "revision"),
        Missing(
            "download_reference",
            "distilled",
            "arms",
            {"revision": NOWHERE},
            "distilled",
            "revision",
        ),
        Missing("download_corpus", "", "corpus", {"revision": NOWHERE}, "stories", "revision"),
        Missing(
            "download_task", "hellaswag", "tasks", {"revision": NOWHERE}, "hellaswag", "revision"
        ),
        Missing("download_task", "cbt_context", "tasks", {"dataset": "standin/no"}, "no", "id"),
        Missing("download_task", "cbt_context", "tasks", {"split": "train"}, "cbt", "split"),
    ],
    ids=lambda missing: f"{missing.rule}, {missing.remedy}",
)
def test_what_the_hub_has_not_is_reported_in_one_line(
    missing: Missing, hub: HubStandin, another: Clone
) -> None:
    config = study(hub)
    part = config[missing.section]
    (part[missing.name] if missing.name else part).update(missing.change)
    (another.folder / "hubbed.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    place = RESULTS / missing.rule / missing.name
    with hub.serving():
        done = call(another, hub, str(place / "manifest.json"), *CALL)
    (line,) = errors_of(done, missing.rule)
    assert line.startswith(f"standin/{missing.repo} could not be fetched (")
    assert re.search(rf"check .*\b{missing.remedy}\b", line)
    assert not (another.folder / place / "manifest.json").exists()
