"""Bad input at large: whatever a config or a data file holds, a call plans or says one clear line.

Thousands of mutations go through the functions that the Snakefile and the rules' scripts call, all
of them the same in every run; a few go through Snakemake as a user calls it.
"""

import json
import re
import runpy
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config
from transformers import PreTrainedTokenizerFast

from iskd.config import check_data_files, complete, load_study
from iskd.config.schema import IskdArm, Replacing, Study
from iskd.data.cloze import cloze_rows
from iskd.data.corpus import story_sequences, train_tokenizer
from iskd.data.row_kinds import read_rows
from iskd.data.rows import read_any_rows, sample_rows, write_rows
from iskd.data.texts import draw_texts, read_texts, split_texts, stream_texts, write_texts
from iskd.errors import UserError
from iskd.evaluation.overlap import measure_overlap, overlap_metrics
from iskd.plan import StudyPlan
from tests.mutations import (
    damaged_bytes,
    further_keys,
    missing_keys,
    odd_rows,
    odd_yaml,
    other_values,
)

from .conftest import ROOT, Clone, make_clone

# With one seed each: three are planned in no other way, and take three times as long.
STUDIES = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8")) | {"seeds": [17]}
    for path in (*sorted((ROOT / "config").glob("*.yaml")), ROOT / "tests/config/tiny.yaml")
}
COMPRESS = STUDIES["compress.yaml"]["teachers"]["model"]
_OF_THE_HUB = ("source", "model", "revision")
STUDIES["folder.yaml"] = STUDIES["compress.yaml"] | {
    "teachers": {
        "model": {"source": "folder", "folder": "my-model"}
        | {key: value for key, value in COMPRESS.items() if key not in _OF_THE_HUB}
    }
}
TINY = (ROOT / "tests/config/tiny.yaml").read_bytes()
READABLE = runpy.run_path(str(ROOT / "workflow/readable.py"))


def plan(study: Study) -> None:
    """Work out what Snakemake asks of a plan while it builds its graph."""
    plan = StudyPlan(study)
    models, trainings, jobs = plan.models, plan.trainings, plan.jobs
    jobs.recorded_config()
    for model in (*models.evaluated(), *models.all_trained()):
        models.place(model)
    for model in models.trained():
        arm = study.arms[model.arm]
        if isinstance(arm, Replacing):
            trainings.plan(model)
        if isinstance(arm, IskdArm):
            trainings.substitution(model)
        else:
            (trainings.at_once if isinstance(arm, Replacing) else trainings.baseline)(model)
    for model in jobs.carded():
        jobs.card(model.path)
    for teacher in study.teachers:
        for figure in ("training", "order", "flips"):
            jobs.has_figure(teacher, figure)
    for task in study.tasks:
        jobs.rows(task)
        jobs.evaluation(task)
    for task in jobs.hub_tasks():
        jobs.download(task)
    jobs.overlap()
    jobs.measured()
    jobs.generating()
    for whole in (jobs.metrics, jobs.measurements, jobs.summary):
        json.dumps(whole())


def fault(line: str, begins: str) -> str | None:
    """Say what is wrong with the one line that a user gets."""
    if not re.match(begins, line):
        return "does not name file and key"
    if not line.isprintable():
        return "holds what a terminal would obey"
    return None if len(line) <= 500 else "too long"


def faults(
    mutations: Iterable[tuple[str, Any]], run: Callable[[Any], object], begins: str
) -> tuple[dict[str, str], int, int]:
    """Run each mutation: what is wrong, by mutation; how many ran well; how many were refused."""
    found: dict[str, str] = {}
    good = refused = 0
    for name, mutated in mutations:
        try:
            run(mutated)
            good += 1
        except UserError as error:
            refused += 1
            if wrong := fault(str(error), begins):
                found[name] = f"{wrong}: {str(error)!r:.300}"
        except Exception as error:  # which would be a traceback
            found[name] = f"{type(error).__name__}: {error!s:.300}"
    return found, good, refused


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a model, and what was looked up on the hub about another one."""
    monkeypatch.chdir(tmp_path)
    shape = {"model_type": "gpt2", "n_layer": 12}
    folder = tmp_path / "data/my-model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    (folder / "model.safetensors").touch()
    known = {f"shape:{COMPRESS['model']}@{COMPRESS['revision']}": shape}
    (tmp_path / "hub.lock.json").write_text(json.dumps(known), encoding="utf-8")


def checked(raw: Any) -> Study:
    """Check a config as the Snakefile does, without the hub."""
    whole = complete(raw, "my.yaml", lambda _: Path("hub.lock.json"), ask=False)
    return load_study(whole, "my.yaml")


KEYED = r"my\.yaml: (\(top level\)|[^:]+): ."


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", STUDIES)
def test_a_mutated_config_plans_or_says_one_line(name: str) -> None:
    config = STUDIES[name]
    # The paper's study is long to plan and has what the others have.
    each = 1 if name == "paper.yaml" else 5
    mutations = [
        *other_values(config, each, seed=17),
        *missing_keys(config),
        *further_keys(config, each=each // 2, seed=17),
    ]
    found, good, refused = faults(mutations, lambda raw: plan(checked(raw)), begins=KEYED)
    assert found == {}
    assert len(mutations) > 150
    assert refused > 100
    assert good > 10


def read_as_snakemake(file: Path) -> None:
    """Do to a config file what a call does: look at it, read it, check it, plan it."""
    if wrong := READABLE["unreadable"](file):
        raise UserError(f"my.yaml: {wrong}")
    config: dict[str, Any] = {}
    update_config(config, load_configfile(file))
    plan(checked(config))


def written(mutations: Iterable[tuple[str, bytes]], file: Path) -> Iterator[tuple[str, Path]]:
    for name, data in mutations:
        file.write_bytes(data)
        yield name, file


def test_a_damaged_config_file_plans_or_says_one_line(tmp_path: Path) -> None:
    mutations = [*odd_yaml(TINY).items(), *damaged_bytes(TINY, 160, seed=17)]
    found, good, refused = faults(
        written(mutations, tmp_path / "my.yaml"), read_as_snakemake, begins=r"my\.yaml: ."
    )
    assert found == {}
    assert len(mutations) > 200
    assert refused > 150
    assert good > 10


UNREADABLE = {
    "empty": "no keys at its top level",
    "not UTF-8": "line 2: not UTF-8",
    "open quote": "no YAML (found unexpected end of stream)",
    "tab": r"line 5: no YAML (found character '\t'",
    "NUL": "character 0x0 is not allowed",
    "JSON brackets": "nested too deep",
    "alias of itself": "look for an alias",
    "aliases of aliases": "look for an alias",
    "a call": "python/object/apply:os.system",
    "no date": "ValueError: month must be in 1..12",
    "5000 digits": "ValueError: Exceeds the limit",
    "broken template": "YteError",
    "a key twice": "line 32: key 'study' stands here twice",
    "a key twice below": "line 6: key 'source' stands here twice",
    "pathvars": "pathvars: unknown key",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_wrong_with_a_config_file_is_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(odd_yaml(TINY)[name])
    assert UNREADABLE[name] in READABLE["unreadable"](file)


def test_a_config_that_is_no_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in READABLE["unreadable"](tmp_path / "none.yaml")
    assert "cannot be read (Is a directory" in READABLE["unreadable"](tmp_path)


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "folder.yaml"])
def test_the_studies_that_are_shipped_are_readable(name: str) -> None:
    folder = "tests/config" if name == "tiny.yaml" else "config"
    assert READABLE["unreadable"](ROOT / folder / name) is None


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ("-n", ["config/config.yaml"]),
        ("-c 1 target --configfile a.yaml b.yaml -n", ["a.yaml", "b.yaml"]),
        ("--configfiles=a.yaml", ["a.yaml"]),
        ("--config study=other", []),
        ("--profile slurm", []),
        ("--profile slurm --configfile a.yaml", ["a.yaml"]),
        ("--configfile", []),
    ],
)
def test_the_config_files_of_a_call_are_found(
    arguments: str, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert READABLE["config_files"](arguments.split()) == files


# --- data files -----------------------------------------------------------------------------

CBT = {
    "sentences": ["A fox met a hen ."] * 20,
    "question": "The XXXXX ran home .",
    "answer": "hen",
    "options": ["fox", "hen", "barn"],
}
HELLASWAG = {
    "activity_label": "Cooking",
    "ctx_a": "A man stands at a stove.",
    "ctx_b": "he",
    "endings": ["stirs.", "flies.", "sings.", "melts."],
    "label": "2",
    "source_id": "video~1",
}
STORY = {"text": "Once there was a fox. It met a hen and a cat.", "id": 1}
# Of lm-eval's tasks, any may have rows with the very fields of ours; arc_easy stands for them.
ROWS = {
    "cbt_question": CBT,
    "cbt_context": CBT,
    "hellaswag": HELLASWAG,
    "arc_easy-cbt": CBT,
    "arc_easy-hellaswag": HELLASWAG,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a b c d e f g h"] * 4, 260, 16)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Study]:
    """Make a study whose files all lie in the test's folder: stories, and rows of some kind."""
    monkeypatch.setenv("MY_DATA", str(tmp_path))

    def make(kind: str | None) -> Study:
        task = {"source": "file", "kind": kind, "file": "my.jsonl"}
        # Beside the file that is spoilt, enough of what a corpus needs.
        more = (f"Once there was a fox that met {n} hens. " * 5 for n in range(30))
        write_texts(more, tmp_path / "more.jsonl")
        own = {"source": "files", "files": ["my.jsonl", "more.jsonl"]}
        tasks = {"cbt_question": {"source": "heldout"}} if kind is None else {"mine": task}
        corpus = own if kind is None else {"source": "toyworld", "block_length": 64}
        changed = {"corpus": corpus | {"block_length": 64}, "tasks": tasks}
        raw = STUDIES["tiny.yaml"] | changed | {"data_folder": "$MY_DATA"}
        return load_study(raw | ({"texts": {"own": own}} if kind is None else {}), "my.yaml")

    return make


NAMED = r".*(my\.jsonl|stories|cloze rows)"


def test_a_mutated_file_of_stories_is_prepared_or_named(
    study: Callable[[str | None], Study], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config, other = study(None), tmp_path / "other.jsonl"

    def run(file: Path) -> None:
        check_data_files(config, "my.yaml")
        texts = read_texts(file)
        train, heldout = split_texts([*islice(texts, None), "a", "b"], 0.3, 17)
        for part in (train, heldout):
            write_texts(part, other)
            story_sequences(read_texts(other), tokenizer, 2)
        story_sequences(draw_texts(texts, 5, 17), tokenizer, 2)
        cloze_rows(heldout, 1, 17)

    lines = json.dumps(STORY).encode() + b"\n" + json.dumps(STORY).encode() + b"\n"
    mutations = [*odd_rows(STORY), *damaged_bytes(lines, 100, seed=17)]
    found, _, refused = faults(written(mutations, tmp_path / "my.jsonl"), run, begins=NAMED)
    assert found == {}
    assert len(mutations) > 150
    assert refused > 50


@pytest.mark.parametrize("name", ROWS)
def test_a_mutated_file_of_rows_is_prepared_or_named(
    study: Callable[[str | None], Study], name: str, tmp_path: Path
) -> None:
    kind, row, other = name.partition("-")[0], ROWS[name], tmp_path / "other.jsonl"
    config = study(kind)

    def run(file: Path) -> None:
        check_data_files(config, "my.yaml")
        rows = read_any_rows(file) if kind == "arc_easy" else read_rows(file, kind)
        write_rows(other, sample_rows(rows, 5, 17))
        stories = stream_texts(tmp_path / "stories.jsonl")
        overlap_metrics(measure_overlap(read_any_rows(other), stories, 3))

    write_texts(["A fox met a hen ."], tmp_path / "stories.jsonl")
    lines = json.dumps(row).encode() + b"\n" + json.dumps(row).encode() + b"\n"
    mutations = [*odd_rows(row), *damaged_bytes(lines, 60, seed=17)]
    found, good, refused = faults(written(mutations, tmp_path / "my.jsonl"), run, begins=NAMED)
    assert found == {}
    assert len(mutations) > 150
    assert refused > 30
    assert good > 15


# --- through Snakemake itself ---------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """One copy for all calls: none of them may touch its results."""
    clone = make_clone(tmp_path_factory.mktemp("bad_input") / "clone")
    kept = clone.folder / "results/tiny/kept.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("an earlier result", encoding="utf-8")
    return clone


CALLED = (*("not UTF-8", "alias of itself", "a call", "pathvars", "odd key", "byte order mark"),)


@pytest.mark.parametrize("name", CALLED)
def test_a_call_plans_or_prints_one_line(shared: Clone, name: str) -> None:
    (shared.folder / "my.yaml").write_bytes(odd_yaml(TINY)[name])
    before = shared.files(".")
    done = shared.snakemake("-n", "-q", "--configfile", "my.yaml")
    printed = (done.stdout + done.stderr).splitlines()
    own = [line for line in printed if not line.startswith("Using workflow specific profile")]
    assert not [line for line in own if "Traceback" in line]
    if name == "byte order mark":
        assert done.returncode == 0, own
    else:
        assert done.returncode == 1
        assert len(own) == 1, own
        assert fault(own[0], r"my\.yaml: .") is None
    after = shared.files(".")
    assert {n: after[n] for n in after if not n.startswith((".snakemake/", "scripts/"))} == {
        n: before[n] for n in before if not n.startswith((".snakemake/", "scripts/"))
    }
    assert not (shared.folder / "owned").exists()


def test_a_default_config_that_cannot_be_read_is_named(clone: Clone) -> None:
    (clone.folder / "config/config.yaml").write_bytes(b"study: caf\xe9\n")
    done = clone.snakemake("-n", "-q")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message == "config/config.yaml: line 1: not UTF-8 text; save the file as UTF-8"
    assert not (clone.folder / "results").exists()


def test_a_job_says_one_line_or_prepares_what_is_odd(clone: Clone) -> None:
    raw = STUDIES["tiny.yaml"] | {
        "data_folder": "data",
        "corpus": {"source": "files", "files": ["stories.jsonl"], "block_length": 64},
        "tasks": {
            "mine": {"source": "file", "kind": "arc_easy", "file": "rows.jsonl"},
            "cbt_context": {"source": "heldout", "rows": 5},
        },
    }
    (clone.folder / "my.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    (clone.folder / "data").mkdir()
    texts = (f"Once there was a fox that met {n} hens. " * 5 for n in range(30))
    write_texts(texts, clone.folder / "data/stories.jsonl")
    write_rows(clone.folder / "data/rows.jsonl", [CBT | {"sentences": [None], "label": {}}])
    results, odd = clone.folder / "results/tiny", "prepare_task/mine"
    cloze = "prepare_task/cbt_context"
    targets = [f"results/tiny/{place}/manifest.json" for place in (cloze, odd)]
    done = clone.snakemake("-c", "1", "-k", *targets, "--configfile", "my.yaml")
    printed = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in printed
    message = "prepare_task: 5 cloze rows were asked for and only 0 can be made"
    log = (results / f"logs/{cloze}.log").read_text(encoding="utf-8")
    assert [message in line for line in log.splitlines()] == [True]
    assert (results / odd / "manifest.json").exists()
    # Beside how it went: no file of the other artifact, whole or half.
    left = {path.name for path in results.iterdir()}
    assert left <= {"logs", "benchmarks", "prepare_task", "split_corpus"}
    assert [path.name for path in (results / "prepare_task").iterdir()] == ["mine"]
