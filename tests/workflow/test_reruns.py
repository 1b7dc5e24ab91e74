"""What reruns when, clause by clause: on copies of one finished study.

Most clauses are about what Snakemake plans; a few are run, and a second call is planned again.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, TINY, Clone, make_clone

pytestmark = pytest.mark.slow

CONFIG = "tests/config/tiny.yaml"
RESULTS = "results/tiny"
STEP = f"{RESULTS}/substitute_block/toy/iskd/seed_3/step_01"

TEXT = "texts:\n  elsewhere: {source: toyworld, stories: 20}\n"

# The study's models: the teacher, two steps of iskd, and two baselines; tasks; model cards.
MODELS, TASKS, CARDS = 5, 2, 3
FROM_METRICS = {
    **dict.fromkeys(("figure_tradeoff", "figure_loss", "figure_flips", "figure_order"), 1),
    **dict.fromkeys(("table_main", "table_significance", "table_ablation"), 1),
    **dict.fromkeys(("paper_numbers", "summarize"), 1),
}
PAPER = {"collect_paper": 1, "paper_bundle": 1}
FROM_MEASUREMENTS = {
    **dict.fromkeys(("figure_pareto", "table_efficiency", "table_costs"), 1),
    **{"paper_measured_numbers": 1, "model_card": CARDS},
}
SUMMARY = {
    "collect_metrics": 1,
    **FROM_METRICS,
    "collect_measurements": 1,
    **FROM_MEASUREMENTS,
    **PAPER,
}


def measured(models: int, arms: int, cards: int = CARDS) -> dict[str, int]:
    """Give the jobs that measure so many models, and those that sum up the study.

    Args:
        models: how many are evaluated anew.
        arms: how many of them are an arm's at the headline step.
        cards: model cards that are written.
    """
    again = {
        "evaluate": models * TASKS,
        "evaluate_heldout": models,
        "measure_efficiency": arms,
    }
    return {
        **{rule: count for rule, count in again.items() if count},
        "figure_training": 1,
        **SUMMARY,
        "model_card": cards,
    }


TRAINED = {"substitute_block": 2, "prune_l1": 1, "distill_student": 1}
FROM_THE_TEACHER = {"plan_substitutions": 1, **TRAINED, **measured(MODELS, 3)}
FROM_THE_CORPUS = {
    "train_tokenizer": 1,
    "prepare_corpus": 1,
    "pretrain_teacher": 1,
    **FROM_THE_TEACHER,
}
EVERYTHING = {
    **{"make_toyworld": 1, "prepare_task": TASKS, "measure_overlap": TASKS},
    **FROM_THE_CORPUS,
}


@pytest.fixture
def study(finished: Clone, tmp_path: Path) -> Clone:
    """A finished study to change, in a folder of another name."""
    return finished.copy(tmp_path / "moved to a place with a longer name")


def fresh_clone_with_results(finished: Clone, folder: Path) -> Clone:
    """Copy the results, and nothing that Snakemake knows of them, into a fresh clone."""
    clone = make_clone(folder)
    shutil.copytree(finished.folder / "results", folder / "results", copy_function=shutil.copyfile)
    # A copy has the times of its copying, in the order of the folders' entries: any order.
    draw = random.Random(7)
    files = sorted(file for file in (folder / "results").rglob("*") if file.is_file())
    times = draw.sample(range(10**9, 10**9 + len(files)), len(files))
    for file, when in zip(files, times, strict=True):
        os.utime(file, (when, when))
    return clone


# --- nothing has changed ----------------------------------------------------------------------


def test_finished_study_that_was_moved_has_nothing_to_do(study: Clone) -> None:
    done = study.snakemake(*TINY)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_touched_files_rerun_nothing(study: Clone) -> None:
    files = [file for file in sorted(study.folder.rglob("*")) if ".snakemake" not in file.parts]
    draw = random.Random(3)
    draw.shuffle(files)
    for number, file in enumerate(files):
        os.utime(file, (2 * 10**9 + number, 2 * 10**9 + number))
    assert study.planned(*TINY) == {}


def test_only_manifests_and_no_big_file_decide(study: Clone) -> None:
    """With a limit of checksums below any weights and above any manifest, as real sizes are."""
    top = study.folder / RESULTS
    limit = max(file.stat().st_size for file in top.rglob("manifest.json"))
    big = [file for file in top.rglob("*") if file.is_file() and file.stat().st_size > limit]
    assert {"model.safetensors", "train.jsonl", "tradeoff.png"} <= {file.name for file in big}
    for file in big:
        os.utime(file, (2 * 10**9, 2 * 10**9))
    assert study.planned(*TINY, "--max-checksum-file-size", str(limit)) == {}


def test_results_copied_into_a_fresh_clone_rerun_nothing(finished: Clone, tmp_path: Path) -> None:
    clone = fresh_clone_with_results(finished, tmp_path / "fresh")
    assert clone.planned(*TINY) == {}


def test_results_in_a_fresh_clone_are_still_distinguished_by_content(
    finished: Clone, tmp_path: Path
) -> None:
    clone = fresh_clone_with_results(finished, tmp_path / "fresh")
    clone.edit(
        f"{STEP}/manifest.json",
        '"block": 1,\n            "parameters"',
        '"block": 0,\n            "parameters"',
    )
    assert clone.planned(*TINY) == {"substitute_block": 1, **measured(2, 1)}


# --- code ---------------------------------------------------------------------------------------

LOOP = "scripts/iskd/training/loop.py"
STATEMENT = "\n_ADDED = 1\n"


def append(study: Clone, file: str, text: str) -> None:
    path = study.folder / file
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_comment_docstring_and_layout_rerun_nothing(study: Clone) -> None:
    study.edit(LOOP, '"""One fine-tuning run', '"""Just one fine-tuning run')
    append(study, LOOP, "\n\n# A remark.\n")
    append(study, "scripts/substitute_block.py", "\n# Another one.\n")
    append(study, "workflow/rules/substitution.smk", "\n# And one in the rules.\n")
    assert study.planned(*TINY) == {}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("scripts/iskd/data/toyworld/stories.py", EVERYTHING),
        (LOOP, {**FROM_THE_TEACHER, "pretrain_teacher": 1}),
        ("scripts/iskd/baselines/l1_pruning.py", {"prune_l1": 1, **measured(1, 1)}),
        ("scripts/distill_student.py", {"distill_student": 1, **measured(1, 1)}),
        ("scripts/iskd/evaluation/harness.py", {"evaluate": MODELS * TASKS, **SUMMARY}),
        (
            "scripts/iskd/paper/tables.py",
            {
                **dict.fromkeys(("table_main", "table_significance", "table_ablation"), 1),
                **dict.fromkeys(("table_efficiency", "table_costs"), 1),
                "summarize": 1,
                **PAPER,
            },
        ),
    ],
    ids=lambda value: Path(value).stem if isinstance(value, str) else "",
)
def test_changed_code_reruns_what_reaches_it_and_what_follows(
    file: str, expected: dict[str, int], study: Clone
) -> None:
    append(study, file, STATEMENT)
    assert study.planned(*TINY) == expected


def test_changed_task_file_reruns_the_evaluations(study: Clone) -> None:
    append(study, "scripts/iskd/evaluation/tasks/_cbt.yaml", "\n")
    assert study.planned(*TINY) == {"evaluate": MODELS * TASKS, **SUMMARY}


def test_changed_code_that_has_run_has_nothing_left_to_do(study: Clone) -> None:
    append(study, "scripts/iskd/paper/figures/tradeoff.py", STATEMENT)
    assert study.planned(*TINY) == {"figure_tradeoff": 1, **PAPER}
    before = study.files(f"{RESULTS}/figure_tradeoff/toy")
    done = study.snakemake(*TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    after = study.files(f"{RESULTS}/figure_tradeoff/toy")
    # Figures carry the digest of their request, which the code is part of.
    figures = {f"tradeoff.{suffix}" for suffix in ("pdf", "svg", "png", "html")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"manifest.json", "run.json", *figures}
    assert study.planned(*TINY) == {}


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            "{method: kd}",
            "{method: kd, objective: {kl: 0.7}}",
            {"distill_student": 1, **measured(1, 1)},
            id="an arm's parameter",
        ),
        pytest.param(
            "{method: iskd}",
            "{method: iskd, training: {learning_rate: {rest: 0.001}}}",
            # The other arms match its size and its tokens, which stay as they are.
            {"substitute_block": 2, **measured(2, 1)},
            id="the reference's parameter",
        ),
        pytest.param(
            "seeds: [3]",
            "seeds: [3, 4]",
            {
                **{"plan_substitutions": 1, **TRAINED, **measured(MODELS - 1, 0)},
                "model_card": 2 * CARDS,
            },
            id="a seed more",
        ),
        pytest.param(
            "  l1: {method: l1}\n",
            "  l1: {method: l1}\n  layer_drop: {method: layer_drop, calibration: 2}\n",
            {"drop_layers": 1, **measured(1, 1, cards=CARDS + 1)},
            id="an arm more",
        ),
        pytest.param(
            "  l1: {method: l1}\n",
            "",
            {"figure_training": 1, **SUMMARY, "model_card": CARDS - 1},
            id="an arm less",
        ),
        pytest.param(
            "  hellaswag: {source: toyworld, rows: 5}\n",
            "  hellaswag: {source: toyworld, rows: 5}\n"
            "  again: {source: toyworld, kind: hellaswag, rows: 3}\n",
            {"prepare_task": 1, "measure_overlap": 1, "evaluate": MODELS, **SUMMARY},
            id="a task more",
        ),
        pytest.param(
            "generation: null\n",
            f"generation: null\n{TEXT}",
            {"make_text": 1, "prepare_text": 1, "evaluate_heldout": MODELS, **SUMMARY},
            id="a text more",
        ),
        pytest.param(
            "rows: 5",
            "rows: 4",
            {"prepare_task": 1, "measure_overlap": 1, "evaluate": MODELS, **SUMMARY},
            id="less rows",
        ),
        pytest.param(
            "compact: {width: 8, heads: 2, blocks: 2, mlp: 32}",
            "compact: {width: 8, heads: 2, blocks: 2, mlp: 24}",
            {
                "plan_substitutions": 1,
                "substitute_block": 2,
                "prune_l1": 1,
                "distill_student": 1,
                **measured(4, 3),
            },
            id="the block's size",
        ),
        pytest.param(
            "order: [1, 2]",
            "order: [1, 2, 0]\n    headline: 2",
            {"plan_substitutions": 1, "substitute_block": 1, **measured(1, 0)},
            id="a step more",
        ),
        pytest.param(
            "order: [1, 2]",
            "order: [1, 0]",
            # The first step is the same. The baselines match the last one.
            {
                "plan_substitutions": 1,
                "substitute_block": 1,
                "prune_l1": 1,
                "distill_student": 1,
                **measured(3, 3),
            },
            id="the last step's block",
        ),
    ],
)
def test_changed_config_reruns_what_depends_on_it(
    old: str, new: str, expected: dict[str, int], study: Clone
) -> None:
    study.edit(CONFIG, old, new)
    assert study.planned(*TINY) == expected


def test_a_text_more_is_made_and_measured(study: Clone) -> None:
    study.edit(CONFIG, "generation: null\n", f"generation: null\n{TEXT}")
    place = f"{RESULTS}/evaluate_heldout/toy/iskd/seed_3/step_02"
    target = f"{place}/elsewhere/manifest.json"
    expected = {"make_text": 1, "prepare_text": 1, "evaluate_heldout": 1}
    assert study.planned(target, *TINY) == expected
    done = study.snakemake(target, *TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    here, there = (
        json.loads((study.folder / place / text / "result.json").read_text(encoding="utf-8"))
        for text in ("heldout", "elsewhere")
    )
    assert set(here["metrics"]) == set(there["metrics"])
    assert here["metrics"]["loss"] != there["metrics"]["loss"]


# --- artifacts ------------------------------------------------------------------------------------


def test_deleted_artifact_is_made_again_alone_when_it_is_requested(study: Clone) -> None:
    """Snakemake misses no file whose every follower is there: weights may be deleted to save space.

    Asked for by name, it is made again, with the same manifest, and nothing that follows.
    """
    before = study.files(STEP)
    shutil.rmtree(study.folder / STEP)
    assert study.planned(*TINY) == {}
    target = f"{STEP}/manifest.json"
    assert study.planned(target, *TINY) == {"substitute_block": 1}
    done = study.snakemake(target, *TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    after = study.files(STEP)
    assert set(after) == set(before)
    assert [name for name in after if after[name] != before[name]] == ["run.json"]
    assert study.planned(*TINY) == {}


def test_deleted_figures_are_made_again(study: Clone) -> None:
    shutil.rmtree(study.folder / RESULTS / "paper")
    assert study.planned(*TINY) == {"collect_paper": 1}


def test_altered_manifest_reruns_what_reads_it(study: Clone) -> None:
    study.edit(
        f"{STEP}/manifest.json",
        '"block": 1,\n            "parameters"',
        '"block": 0,\n            "parameters"',
    )
    assert study.planned(*TINY) == {"substitute_block": 1, **measured(2, 1)}


def test_big_corpus_that_is_touched_reruns_nothing(tmp_path: Path) -> None:
    """A user's own file has no manifest; it is compared by content far beyond a megabyte."""
    clone = make_clone(tmp_path / "clone")
    (clone.folder / "data").mkdir()
    corpus = clone.folder / "data/stories.jsonl"
    lines = (f'{{"text": "Story {n}: {"and so on " * 20}"}}\n' for n in range(6000))
    corpus.write_text("".join(lines), encoding="utf-8")
    assert corpus.stat().st_size > 10**6
    study = (ROOT / CONFIG).read_text(encoding="utf-8")
    head, tail = study.index("corpus:"), study.index("teachers:")
    own = "corpus: {source: files, files: [stories.jsonl], block_length: 64}\ndata_folder: data\n"
    tasks = study.index("tasks:")
    (clone.folder / "own.yaml").write_text(
        study[:head] + own + study[tail:tasks] + "tasks:\n  cbt_context: {source: heldout}\n",
        encoding="utf-8",
    )
    call = (f"{RESULTS}/split_corpus/manifest.json", "--configfile", "own.yaml", "-c", "1")
    done = clone.snakemake(*call)
    assert done.returncode == 0, done.stderr[-4000:]
    os.utime(corpus, (2 * 10**9, 2 * 10**9))
    assert clone.planned(*call) == {}
    corpus.write_text(corpus.read_text(encoding="utf-8") + '{"text": "More."}\n', encoding="utf-8")
    os.utime(corpus, (2 * 10**9, 2 * 10**9))
    assert clone.planned(*call) == {"split_corpus": 1}
