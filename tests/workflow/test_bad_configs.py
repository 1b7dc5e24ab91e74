"""A user's mistake in the config: one line with file, key and remedy, and nothing touched."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Clone, make_clone

TINY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text(encoding="utf-8"))
PAPER = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
REAL = yaml.safe_load((ROOT / "config/real.yaml").read_text(encoding="utf-8"))

Config = dict[str, Any]
Edit = Callable[[Config], object]


def put(*path: Any) -> Edit:
    """Set the value at a path of keys; the last item is the value."""

    def edit(config: Config) -> None:
        *keys, last, value = path
        for key in keys:
            config = config[key]
        config[last] = value

    return edit


def drop(*path: str) -> Edit:
    """Remove the key at a path."""

    def edit(config: Config) -> None:
        *keys, last = path
        for key in keys:
            config = config[key]
        del config[last]

    return edit


CASES: dict[str, tuple[Config, Edit, tuple[str, ...]]] = {
    "unknown key": (TINY, put("sedes", [1]), ("sedes", "did you mean 'seeds'")),
    "unknown key below": (
        TINY,
        put("corpus", "storys", 3),
        ("corpus.storys", "did you mean 'stories'"),
    ),
    "missing key": (TINY, drop("teachers", "toy", "order"), ("teachers.toy.order", "missing")),
    "wrong type": (TINY, put("seeds", "seventeen"), ("seeds", "list")),
    "negative rate": (
        TINY,
        put("teachers", "toy", "pretraining", "learning_rate", -0.1),
        ("teachers.toy.pretraining.learning_rate", "more than 0"),
    ),
    "block that does not exist": (
        TINY,
        put("teachers", "toy", "order", [1, 7]),
        ("teachers.toy.order", "block 7 does not exist", "0 to 2"),
    ),
    "same block twice": (
        TINY,
        put("teachers", "toy", "order", [1, 1]),
        ("teachers.toy.order", "twice"),
    ),
    "unknown family": (
        TINY,
        put("teachers", "toy", "family", "rwkv"),
        ("teachers.toy.family", "rwkv", "gpt2"),
    ),
    "unknown task": (
        TINY,
        put("tasks", "arithmetic", {"source": "toyworld"}),
        ("tasks.arithmetic", "unknown task", "cbt_question"),
    ),
    "name with ../": (TINY, put("study", "../escape"), ("study", "lower-case letters")),
    "name with $(...)": (
        TINY,
        put("arms", "$(touch owned)", {"method": "iskd"}),
        ("arms.$(touch owned)", "lower-case letters"),
    ),
    "file with ../": (
        REAL,
        put("corpus", "files", ["../secret.jsonl"]),
        ("corpus.files.0", "below data_folder"),
    ),
    "branch as revision": (
        PAPER,
        put("teachers", "gpt2", "revision", "main"),
        ("teachers.gpt2.revision", "40 hexadecimal digits"),
    ),
    "baseline beyond the last step": (
        TINY,
        put("arms", "l1", "steps", [3]),
        ("arms.l1.steps", "step 3 does not exist"),
    ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One copy for all cases: each of them must leave it as it was."""
    clone = make_clone(tmp_path_factory.mktemp("bad") / "clone")
    kept = clone.folder / "results" / "tiny" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("an earlier result", encoding="utf-8")
    return clone


def check_refusal(
    clone: Clone, config: Config, expected: tuple[str, ...], **environment: str
) -> None:
    """Run a bad config and look at everything a user would see."""
    (clone.folder / "config" / "bad.yaml").write_text(
        yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
    )
    before = clone.files()
    done = clone.snakemake("-c", "1", "--configfile", "config/bad.yaml", **environment)
    printed = (done.stdout + done.stderr).splitlines()
    own = [line for line in printed if not line.startswith("Using workflow specific profile")]
    assert done.returncode == 1
    assert len(own) == 1, own
    assert own[0].startswith("config/bad.yaml: ")
    for words in expected:
        assert words in own[0]
    assert clone.files() == before
    assert not (clone.folder / "owned").exists()


@pytest.mark.parametrize("case", CASES)
def test_bad_config_is_one_line(shared: Clone, case: str, tmp_path: Path) -> None:
    config, edit, expected = CASES[case]
    bad = copy.deepcopy(config)
    edit(bad)
    check_refusal(shared, bad, expected, ISKD_REAL_DATA=str(tmp_path))


STORY = json.dumps({"text": "Once there was a test."}) + "\n"
ROW = {
    "ctx": "A bird sat down.",
    "endings": ["It sang.", "It rained.", "It ran.", "It slept."],
    "label": "0",
    "activity_label": "",
    "ctx_a": "A bird sat down.",
    "ctx_b": "",
    "ind": 1,
    "source_id": "x",
    "split": "val",
    "split_type": "indomain",
}


@pytest.mark.parametrize(
    ("stories", "rows", "expected"),
    [
        ("", json.dumps(ROW) + "\n", ("corpus.files.0", "empty")),
        ('{"story": "x"}\n', json.dumps(ROW) + "\n", ("corpus.files.0", "line 1", "text")),
        (
            STORY,
            json.dumps(ROW) + "\n" + json.dumps({k: ROW[k] for k in ROW if k != "endings"}) + "\n",
            ("tasks.hellaswag.file", "line 2", "endings"),
        ),
        (STORY + '{"text": "cut o', json.dumps(ROW) + "\n", ("corpus.files.0", "line 2")),
        (STORY, None, ("tasks.hellaswag.file", "hellaswag_validation.jsonl is not there")),
    ],
    ids=["empty corpus", "story lacks text", "row lacks endings", "truncated", "missing file"],
)
def test_bad_data_file_is_one_line(
    shared: Clone, tmp_path: Path, stories: str, rows: str | None, expected: tuple[str, ...]
) -> None:
    (tmp_path / "tinystories.jsonl").write_text(stories, encoding="utf-8")
    if rows is not None:
        (tmp_path / "hellaswag_validation.jsonl").write_text(rows, encoding="utf-8")
    check_refusal(shared, REAL, expected, ISKD_REAL_DATA=str(tmp_path))


def test_unset_variable_is_one_line(shared: Clone) -> None:
    check_refusal(shared, REAL, ("data_folder", "ISKD_REAL_DATA", "set it"), ISKD_REAL_DATA="")
