"""One tiny study with every kind of arm, run as a user would: each gives what it promises."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iskd.audit.findings import Code
from iskd.audit.verify import verify
from iskd.provenance.artifact import MANIFEST, read_manifest
from iskd.provenance.statement import Statement, write_statement
from tests.workflow.conftest import ROOT, Clone

from .conftest import ARMS as CALL

RESULTS = "results/arms"
ARMS = {
    "paper", "as_published", "distilled", "bottleneck", "narrow", "parts", "parts_once", "one_shot",
    "theseus",
    "l1", "l1_exact", "kd_alternate", "layer_drop", "layer_drop_steps", "exact", "sampled",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(all_arms: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the finished study, whose config is changed now and then."""
    return all_arms.copy(tmp_path_factory.mktemp("arms") / "clone")


def read(clone: Clone, path: str) -> Any:
    return json.loads((clone.folder / RESULTS / path).read_text(encoding="utf-8"))


def table(clone: Clone) -> dict[tuple[str, int], dict[str, str]]:
    file = clone.folder / RESULTS / "paper/table_ablation.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        return {(row["arm"], int(row["step"])): row for row in csv.DictReader(stream)}


def test_every_arm_stands_in_the_table_with_its_costs(done: Clone) -> None:
    rows = table(done)
    assert {arm for arm, _ in rows} == ARMS | {"teacher"}
    for (arm, _), row in rows.items():
        assert float(row["heldout/loss"]) > 0
        assert (row["tokens"] == "") == (arm == "teacher")
    # Two steps of 32 sequences of 64 tokens, whatever the method.
    assert {row["tokens"] for (arm, _), row in rows.items() if arm != "teacher"} == {"4096"}
    costs = {arm: float(row["training_flops"] or 0) for (arm, _), row in rows.items()}
    assert costs["distilled"] > costs["paper"]  # the teacher's forward passes count
    assert costs["sampled"] == costs["paper"]
    assert costs["paper"] < costs["exact"] < costs["distilled"]


def test_methods_of_one_size_have_one_size(done: Clone) -> None:
    size = {arm: int(row["parameters"]) for (arm, _), row in table(done).items()}
    assert size["as_published"] == size["distilled"] == size["theseus"] == size["paper"]
    # One unit of theirs is at most a head.
    for arm in ("l1", "layer_drop", "bottleneck"):
        assert 0 <= size["paper"] - size[arm] < 3000, arm
    assert size["kd_alternate"] <= size["narrow"] < size["paper"] * 1.1
    assert 1 - size["narrow"] / size["teacher"] >= 0.2


def test_recipe_parts_meets_its_budget_and_says_how(done: Clone) -> None:
    size = {arm: int(row["parameters"]) for (arm, _), row in table(done).items()}
    most = size["teacher"] - 0.1 * size["teacher"]
    assert most - 200 < size["parts"] <= most
    assert most - 200 < size["parts_once"] <= most
    once = read(done, "substitute_at_once/toy/parts_once/seed_3/step_02/substitution.json")
    assert sum(row["saved"] for row in once["changes"]) == size["teacher"] - size["parts_once"]
    chain = "substitute_block/toy/parts/seed_3"
    taken = [
        row
        for step in ("step_01", "step_02")
        for row in read(done, f"{chain}/{step}/substitution.json")["changes"]
    ]
    assert sum(row["saved"] for row in taken) == size["teacher"] - size["parts"]
    config = read(done, f"{chain}/step_02/config.json")
    assert {entry["index"] for entry in config["narrow_blocks"]} == {row["block"] for row in taken}


def test_a_text_that_is_mixed_in_is_trained_on_and_not_measured(done: Clone) -> None:
    mixed = done.folder / RESULTS / "mix_corpus/toy/train.safetensors"
    own = done.folder / RESULTS / "prepare_corpus/toy/train.safetensors"
    assert mixed.is_file()
    assert own.is_file()
    heads = table(done)[("paper", 2)].keys()
    assert "heldout/loss" in heads
    assert not any(head.startswith("general/") for head in heads)


def test_what_was_decided_on_the_way_is_written_down(done: Clone) -> None:
    chain = "substitute_block/toy/distilled/seed_3"
    first, second = (read(done, f"{chain}/step_0{n}/substitution.json") for n in (1, 2))
    assert set(first["loss_if_replaced"]) == {"0", "1", "2", "3"}
    assert set(second["loss_if_replaced"]) == {"0", "1", "2", "3"} - {str(first["block"])}
    history = done.folder / RESULTS / chain / "step_01/history.jsonl"
    phases = [json.loads(line)["phase"] for line in history.read_text().splitlines()]
    assert phases[0] == "warm_start"
    assert phases[-1] == "joint"
    dropped = read(done, "drop_layers/toy/layer_drop/seed_3/step_02/dropped.json")
    assert len(dropped["influence"]) == 4
    assert dropped["narrowed"] is not None
    by_steps = read(done, "drop_layers/toy/layer_drop_steps/seed_3/step_02/dropped.json")
    assert len(by_steps["dropped"]) == 2
    assert set(by_steps["refitted"]).isdisjoint(by_steps["dropped"])
    assert "refitted" not in dropped
    student = read(done, "distill_student/toy/kd_alternate/seed_3/step_02/student.json")
    assert student["taken"] == sorted(student["taken"])


def test_the_published_defect_is_in_its_arm_alone(done: Clone) -> None:
    def compact(arm: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read(
            done, f"substitute_block/toy/{arm}/seed_3/step_02/config.json"
        )["compact_blocks"]
        return found

    assert all(entry["published"] for entry in compact("as_published"))
    assert not any(entry["published"] for entry in compact("paper"))


def test_models_carry_their_code(done: Clone) -> None:
    folder = done.folder / RESULTS / "substitute_block/toy/paper/seed_3/step_02"
    assert {"iskd_blocks.py", "iskd_gpt2.py"} <= {file.name for file in folder.iterdir()}
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == "iskd_gpt2.CompactGPT2LMHeadModel"


def test_the_teacher_is_asked_once_for_all_arms_and_steps(done: Clone) -> None:
    top = done.folder / RESULTS / "record_teacher/toy"
    answers = "exact_float32_32", "sampled_6_t1_bfloat16_32_without_4"
    assert {folder.name for folder in top.iterdir()} == set(answers)
    for name in answers:
        steps = [f"record_teacher/toy/{name}/seed_3/step_0{step}" for step in (1, 2)]
        facts = [read(done, f"{step}/answers.json") for step in steps]
        assert [about["sequences"] for about in facts] == [32, 32]
        assert (top / f"{name}/seed_3/step_01/projection.safetensors").exists() == (
            name == answers[0]
        )
    # Another temperature asks nothing else of hidden states, and a baseline reads those of a chain.
    for model in ("substitute_block/toy/exact", "prune_l1/toy/l1_exact"):
        statement = read_manifest(done.folder / RESULTS / model / "seed_3/step_02")
        given = [name for name in statement.request["inputs"] if "record_teacher" in name]
        assert given == [
            f"{RESULTS}/record_teacher/toy/{answers[0]}/seed_3/step_0{step}/manifest.json"
            for step in (1, 2)
        ]


def test_the_study_verifies_and_a_changed_answer_is_found(done: Clone, tmp_path: Path) -> None:
    config = ROOT / "tests/config/arms.yaml"
    copy = tmp_path / "copy" / RESULTS
    shutil.copytree(done.folder / RESULTS, copy)
    assert verify(copy, at="checkout", config=config, derive=False).findings == []
    place = "record_teacher/toy/exact_float32_32/seed_3/step_02"
    file = copy / place / "answers-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = verify(copy, derive=False).findings
    assert [(finding.place, finding.code) for finding in found] == [
        (f"{place}/{file.name}", Code.CONTENT_CHANGED)
    ]
    # Nor does it help to write a statement about less.
    file.unlink()
    old = read_manifest(copy / place)
    files = {name: about for name, about in old.files.items() if name != file.name}
    text = write_statement(Statement(old.request, files, old.summary))
    (copy / place / MANIFEST).write_text(text, encoding="utf-8")
    wrong = {(f.place, f.code) for f in verify(copy, derive=False).findings}
    assert (f"{place}/answers.json", Code.WRONG_FILES) in wrong


def test_a_finished_study_has_nothing_to_do(done: Clone) -> None:
    ran = done.snakemake(*CALL)
    assert "Nothing to be done" in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("old", "new", "rerun"),
    [
        ("theseus, reference: paper", "theseus, first: 0.4, reference: paper", {"theseus"}),
        ("temperature: 2.0, hidden", "temperature: 3.0, hidden", {"distilled"}),
        # What is recorded of a study's tokens is so for any arm that takes them.
        (
            "temperature: 2.0, teacher_cache: exact",
            "temperature: 4.0, teacher_cache: exact",
            {"exact"},
        ),
        (
            "  paper: {method: iskd}",
            "  paper: {method: iskd, objective: {kl: 0.5, teacher_cache: exact}}",
            {"paper"},
        ),
    ],
)
def test_a_change_of_one_arm_reruns_that_arm(
    old: str, new: str, rerun: set[str], done: Clone
) -> None:
    config = done.folder / "tests/config/arms.yaml"
    before = config.read_text()
    assert old in before
    try:
        config.write_text(before.replace(old, new))
        ran = done.snakemake("-n", "--verbose", *CALL)
    finally:
        config.write_text(before)
    planned = ran.stdout + ran.stderr
    made = {
        line.split("arm=")[1].split(",")[0]
        for line in planned.splitlines()
        if "wildcards:" in line and "arm=" in line
    }
    assert made == rerun
