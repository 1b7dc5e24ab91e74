"""Models that are given: the hub is queried once, and what is wrong with a folder is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub_standin import HubStandin
from tests.unit.test_model_folder import BAD, whole_folder

from .conftest import Clone, make_clone

CLOZE = "heldout, kind: cbt_context}}"
CONFIG = ("--configfile", "config/compress.yaml")


def asking(url: str) -> dict[str, str]:
    """Give the environment of somebody whose hub is at an address."""
    offline = {"HF_HUB_OFFLINE": "0", "HF_HOME": "cache"}
    return {"HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1", **offline}


@pytest.fixture
def hub(tmp_path: Path) -> HubStandin:
    return HubStandin(tmp_path / "repositories")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = make_clone(tmp_path / "clone")
    (clone.folder / "data").mkdir()
    texts = (f"Once there was a hen that had {n} chicks. " * 5 for n in range(50))
    text = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (clone.folder / "data/corpus.jsonl").write_text(text, encoding="utf-8")
    path = clone.folder / "config/compress.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    # Without a commit, and with as many steps as follow from the model.
    left_out = ("revision:", "steps:")
    kept = [line for line in lines if not line.strip().startswith(left_out)]
    path.write_text("\n".join(kept).replace("openai-community/gpt2", "a/b"), encoding="utf-8")
    return clone


def test_the_hub_is_queried_once(hub: HubStandin, clone: Clone) -> None:
    shape = {"model_type": "llama", "num_hidden_layers": 8}
    commit = hub.publish("model", "a/b", {"config.json": json.dumps(shape).encode()})
    with hub.serving():
        done = clone.snakemake("-n", "-q", "rules", *CONFIG, **asking(hub.url))
    assert done.returncode == 0, done.stderr[-4000:]
    lock = json.loads((clone.folder / "results/compress/hub.lock.json").read_text())
    assert lock == {"model:a/b": commit, f"shape:a/b@{commit}": shape}
    # Half of its eight blocks; the hub is not queried any more.
    counts = clone.planned(*CONFIG)
    assert counts["substitute_block"] == 4
    assert counts["download_model"] == 1


def test_a_model_that_cannot_be_made_smaller(hub: HubStandin, clone: Clone) -> None:
    shape = {"model_type": "bert", "num_hidden_layers": 8}
    hub.publish("model", "a/b", {"config.json": json.dumps(shape).encode()})
    with hub.serving():
        done = clone.snakemake("-n", *CONFIG, **asking(hub.url))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "config/compress.yaml" in line]
    assert "teachers.model: the model's architecture 'bert' is not supported" in line
    assert "Traceback" not in done.stderr


def test_no_network(clone: Clone) -> None:
    done = clone.snakemake("-n", *CONFIG, **asking("http://127.0.0.1:9"))
    assert "Retrying" not in done.stderr
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "config/compress.yaml" in line]
    assert "family and blocks are left out, so the hub is asked: a/b could not be fetched" in line
    assert not (clone.folder / "results").exists()


@pytest.mark.parametrize(
    ("spoil", "expected"), BAD, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_bad_folder_is_reported_by_a_dry_run(
    clone: Clone, spoil: Callable[[Path], None], expected: str
) -> None:
    folder = clone.folder / "data/my-model"
    folder.mkdir()
    whole_folder(folder)
    path = clone.folder / "config/compress.yaml"
    config = path.read_text(encoding="utf-8").replace("source: hub", "source: folder")
    config = config.replace("tasks: {hellaswag: {source: lm_eval}, lambada_openai", "tasks: {own")
    config = config.replace("model: a/b", "folder: my-model").replace("lm_eval}}", CLOZE)
    path.write_text(config, encoding="utf-8")
    spoil(folder)
    done = clone.snakemake("-n", *CONFIG)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "config/compress.yaml" in line]
    assert line.startswith("config/compress.yaml: teachers.model.folder: ")
    assert expected in line
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "results").exists()
