"""Faults injected into copies of one finished study: each is found, with its own code.

The numbers are those of the list that the audit was designed for; what only re-execution, the
resuming of jobs or the config's schema can find is tested where these are.
"""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from iskd.audit.findings import Code
from iskd.audit.verify import verify
from iskd.cli import main
from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, produced, read_manifest
from iskd.provenance.statement import Produced, canonical_json
from tests.workflow.conftest import ROOT, Clone, make_clone

from .tampering import RESULTS, Results, flip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("planned_once")]

CHAIN = "substitute_block/toy/iskd/seed_3"
FIRST, SECOND = f"{CHAIN}/step_01", f"{CHAIN}/step_02"
ANSWERS = "evaluate/toy/iskd/seed_3/step_02/cbt_context"
FIGURE = "figure_tradeoff/toy"


def swap(one: Path, other: Path) -> None:
    third = one.with_name("third")
    one.rename(third)
    other.rename(one)
    third.rename(other)


# --- nothing is wrong -----------------------------------------------------------------------------


def test_a_finished_study_is_in_order(finished: Clone) -> None:
    config = ROOT / "tests/config/tiny.yaml"
    verdict = verify(finished.folder / RESULTS, at="checkout", config=config)
    assert verdict.findings == []
    assert verdict.notes == []
    assert verdict.artifacts > 50


def test_a_copy_that_is_touched_and_has_another_mode_is_in_order(results: Results) -> None:
    draw = random.Random(1)
    for path in sorted(results.folder.rglob("*")):
        if path.is_file():
            os.utime(path, (draw.randint(1, 2 * 10**9), draw.randint(1, 2 * 10**9)))
            path.chmod(0o444 if draw.random() < 0.5 else 0o755)
    assert results.codes(at="checkout") == set()


def test_a_fresh_clone_verifies_what_is_copied_into_it(finished: Clone, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "another path" / "clone")
    shutil.copytree(finished.folder / "results", clone.folder / "results")
    verdict = verify(clone.folder / RESULTS, at="checkout", derive=False)
    assert verdict.findings == []


def test_logs_benchmarks_and_work_in_hand_are_no_results(results: Results) -> None:
    (results / "logs/more.log").write_text("said later")
    (results / f"{CHAIN}/.step_03.partial-1234").mkdir()
    (results / f"{CHAIN}/.step_03.partial-1234/model.safetensors").write_bytes(b"half")
    assert results.codes() == set()


# --- bytes ----------------------------------------------------------------------------------------


def test_1_one_byte_of_the_weights(results: Results) -> None:
    flip(results / f"{SECOND}/model.safetensors")
    assert results.codes() == {(SECOND, Code.CONTENT_CHANGED)}


def test_1_weights_that_another_library_wrote_are_distinguished_from_changed_ones(
    results: Results,
) -> None:
    path = results / f"{SECOND}/model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "by": "somebody"})
    assert results.codes() == {(SECOND, Code.RESERIALISED)}


def test_2_a_checkpoint_is_gone(results: Results) -> None:
    shutil.rmtree(results / FIRST)
    found = results.codes()
    assert (FIRST, Code.MISSING_ARTIFACT) in found
    assert (SECOND, Code.CHAIN_BROKEN) in found


def test_3_a_file_of_it_is_gone(results: Results) -> None:
    (results / f"{SECOND}/model.safetensors").unlink()
    assert results.codes() == {(SECOND, Code.MISSING_FILE)}


def test_4_a_file_more(results: Results) -> None:
    (results / f"{SECOND}/modeling_evil.py").write_text("import os")
    assert results.codes() == {(SECOND, Code.EXTRA_FILE)}


# --- the chain ------------------------------------------------------------------------------------


def test_5_two_checkpoints_weights_change_places(results: Results) -> None:
    swap(results / f"{FIRST}/model.safetensors", results / f"{SECOND}/model.safetensors")
    found = results.codes()
    assert {(FIRST, Code.CONTENT_CHANGED), (SECOND, Code.CONTENT_CHANGED)} <= found


def test_6_and_their_statements_with_them(results: Results) -> None:
    swap(results / FIRST, results / SECOND)
    found = results.codes()
    assert {(FIRST, Code.WRONG_SUBJECT), (SECOND, Code.WRONG_SUBJECT)} <= found


def test_7_and_their_names_forged_in_the_statements(results: Results) -> None:
    swap(results / FIRST, results / SECOND)
    for place, step in ((FIRST, "01"), (SECOND, "02")):
        wildcards = read_manifest(results / place).request["wildcards"] | {"step": step}
        results.rewrite(place, request={"wildcards": wildcards})
    found = results.codes()
    assert (FIRST, Code.CHAIN_BROKEN) in found
    assert (SECOND, Code.WRONG_INPUT_SET) in found


def test_21_a_step_in_the_middle_is_trained_again_and_later_ones_are_not(results: Results) -> None:
    flip(results / f"{FIRST}/model.safetensors")
    results.rewrite(FIRST)
    found = results.codes()
    assert (SECOND, Code.CHAIN_BROKEN) in found
    assert not any(place == FIRST for place, _ in found)


def test_20_a_statement_written_anew_about_the_same_files(results: Results) -> None:
    results.rewrite(FIRST, summary={"parameters": 1})
    found = results.codes()
    assert (SECOND, Code.CHAIN_STATEMENT) in found
    assert (FIRST, Code.WEIGHTS_NOT_AS_SAID) in found


def test_25_an_evaluation_of_another_checkpoint(results: Results) -> None:
    inputs = dict(read_manifest(results / ANSWERS).request["inputs"])
    name = f"{RESULTS}/{SECOND}/manifest.json"
    inputs[name.replace("step_02", "step_01")] = inputs.pop(name)
    results.rewrite(ANSWERS, request={"inputs": inputs})
    found = results.codes()
    assert (ANSWERS, Code.WRONG_INPUT_SET) in found
    assert (ANSWERS, Code.CHAIN_BROKEN) in found


def test_24_forged_times(results: Results) -> None:
    path = results / f"{FIRST}/{RUN}"
    run = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(canonical_json(run | {"started": "2020-01-01T00:00:00+00:00"}))
    assert results.codes() == {(FIRST, Code.TIME_ORDER)}


def test_24_a_cycle(results: Results) -> None:
    inputs = dict(read_manifest(results / FIRST).request["inputs"])
    name = f"{RESULTS}/{SECOND}/manifest.json"
    inputs[name] = {"sha256": file_digest(results / SECOND / MANIFEST), "artifact": "0" * 64}
    results.rewrite(FIRST, request={"inputs": inputs})
    assert Code.CYCLE in {code for _, code in results.codes()}


def test_26_a_leftover_of_an_older_run(results: Results) -> None:
    shutil.copytree(results / SECOND, results / f"{CHAIN}/step_03")
    found = results.codes()
    assert (f"{CHAIN}/step_03", Code.ORPHAN) in found


# --- statements -----------------------------------------------------------------------------------


def without(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def with_a_key_twice(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('  "subject":', '  "subject": [],\n  "subject":'))


def with_a_key_more(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(canonical_json(data | {"note": "nothing to see"}))


def with_two_dots(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"name": "config.json"', '"name": "../step_01/config.json"'))


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (without, Code.MISSING_STATEMENT),
        (cut, Code.BAD_STATEMENT),
        (with_a_key_twice, Code.BAD_STATEMENT),
        (with_a_key_more, Code.BAD_STATEMENT),
        (with_two_dots, Code.BAD_STATEMENT),
    ],
)
def test_20_23_a_statement_that_is_damaged(
    harm: Callable[[Path], None], code: Code, results: Results
) -> None:
    harm(results / SECOND / MANIFEST)
    assert (SECOND, code) in results.codes()


def test_23_links(results: Results) -> None:
    path, away = results / f"{SECOND}/model.safetensors", results.folder.parent / "away"
    shutil.copy(path, away)
    path.unlink()
    path.symlink_to(away)
    found = results.codes()
    path.unlink()
    os.link(away, path)
    assert (SECOND, Code.LINK) in found
    assert (SECOND, Code.LINK) in results.codes()


# --- numbers --------------------------------------------------------------------------------------


def edit_result(results: Results) -> None:
    path = results / f"{ANSWERS}/result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["metrics"]["acc"]["value"] = 0.99
    path.write_text(canonical_json(result), encoding="utf-8")


def test_8_an_edited_result(results: Results) -> None:
    edit_result(results)
    found = results.codes()
    assert (ANSWERS, Code.CONTENT_CHANGED) in found
    assert (ANSWERS, Code.METRIC_NOT_FROM_ITEMS) in found


def test_9_and_its_statement_rewritten(results: Results) -> None:
    edit_result(results)
    results.rewrite(ANSWERS, summary={"acc": 0.99, "acc_mean": 0.99})
    found = results.codes()
    assert (ANSWERS, Code.METRIC_NOT_FROM_ITEMS) in found
    assert ("collect_metrics", Code.CHAIN_BROKEN) in found


def test_10_and_everything_after_it_made_again_by_the_workflow(
    finished: Clone, tmp_path: Path
) -> None:
    clone = finished.copy(tmp_path / "clone")
    laundered = Results(clone.folder / RESULTS)
    edit_result(laundered)
    laundered.rewrite(ANSWERS)
    done = clone.snakemake("--configfile", "tests/config/tiny.yaml", "-c", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert laundered.codes() == {(ANSWERS, Code.METRIC_NOT_FROM_ITEMS)}


def forge_figure(results: Results) -> None:
    path = results / f"{FIGURE}/tradeoff.png"
    shutil.copy(results / "figure_loss/toy/loss.png", path)


def test_11_a_forged_figure(results: Results) -> None:
    forge_figure(results)
    assert (FIGURE, Code.CONTENT_CHANGED) in results.codes()


def test_12_and_its_statement_rewritten(results: Results) -> None:
    forge_figure(results)
    results.rewrite(FIGURE)
    found = results.codes(derive=True)
    assert (FIGURE, Code.NOT_FROM_METRICS) in found
    assert ("paper", Code.CHAIN_BROKEN) in found


def test_13_a_figure_from_other_numbers(results: Results) -> None:
    inputs = dict(read_manifest(results / FIGURE).request["inputs"])
    inputs[f"{RESULTS}/metrics.csv"] = {"sha256": "1" * 64}
    results.rewrite(FIGURE, request={"inputs": inputs})
    assert (FIGURE, Code.CHAIN_BROKEN) in results.codes()


def test_the_table_beside_the_artifacts_is_edited(results: Results) -> None:
    path = results / "metrics.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("0.", "0.9", 1), encoding="utf-8")
    found = results.codes()
    assert ("metrics.csv", Code.CONTENT_CHANGED) in found
    assert (FIGURE, Code.CHAIN_BROKEN) in found


# --- code, config, environment --------------------------------------------------------------------


def verdict_in(clone: Clone, at: str) -> dict[str, set[str]]:
    """Verify with another checkout's code, by its own command; give places by code."""
    done = clone.iskd("verify", RESULTS, "--json", "--fast", "--at", at)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, set[str]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["code"], set()).add(finding["place"])
    return found


def test_14_changed_code(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "clone")
    clone.edit(
        "scripts/iskd/training/optimizer.py", "(0.9, settings.beta2)", "(0.91, settings.beta2)"
    )
    assert verdict_in(clone, "recorded") == {}
    stale = verdict_in(clone, "checkout")
    assert set(stale) == {"STALE_CODE"}
    assert FIRST in stale["STALE_CODE"]
    assert not any(place.startswith("evaluate/") for place in stale["STALE_CODE"])


def test_15_one_rules_artifacts_by_two_versions(results: Results) -> None:
    results.rewrite(SECOND, request={"code": "0123456789abcdef"})
    assert Code.MIXED_CODE in {code for _, code in results.codes()}


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        pytest.param(
            "learning_rate: 0.002", "learning_rate: 0.001", "pretrain_teacher/toy", id="16"
        ),
        pytest.param("order: [1, 2]", "order: [2, 1]", FIRST, id="17"),
        pytest.param("rows: 5}", "rows: 4}", "prepare_task/hellaswag", id="16 in a task"),
    ],
)
def test_16_17_changed_config(
    old: str, new: str, place: str, results: Results, tmp_path: Path
) -> None:
    text = (ROOT / "tests/config/tiny.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    config = tmp_path / "tiny.yaml"
    config.write_text(text.replace(old, new), encoding="utf-8")
    assert (place, Code.STALE_CONFIG) in results.codes(config=config)


def test_18_another_seed_in_the_statement(results: Results) -> None:
    results.rewrite(SECOND, request={"seed": 4})
    assert (SECOND, Code.STALE_CONFIG) in results.codes()


def test_19_another_lock(results: Results) -> None:
    results.rewrite(SECOND, request={"lock": "2" * 64})
    assert (SECOND, Code.MIXED_ENVIRONMENT) in results.codes()
    assert (SECOND, Code.STALE_ENVIRONMENT) in results.codes(at="checkout")


def test_22_data_that_was_replaced(results: Results) -> None:
    place = "make_toyworld"
    (results / f"{place}/train.jsonl").write_text('{"text": "other"}\n', encoding="utf-8")
    results.rewrite(place)
    assert ("prepare_corpus/toy", Code.CHAIN_BROKEN) in results.codes()


def test_another_block_is_replaced_than_planned(results: Results) -> None:
    path = results / f"{FIRST}/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["compact_blocks"][0]["index"] = 0
    path.write_text(json.dumps(config), encoding="utf-8")
    assert (FIRST, Code.BLOCKS_NOT_AS_PLANNED) in results.codes()


# --- faults that the design was not made for ------------------------------------------------------


def report_of_another_run(results: Results) -> str:
    shutil.copy(results / f"{FIRST}/{RUN}", results / f"{SECOND}/{RUN}")
    return SECOND


def statement_about_no_file(results: Results) -> str:
    results.rewrite(FIGURE, files={})
    return FIGURE


def artifact_inside_another(results: Results) -> str:
    shutil.copytree(results / FIRST, results / f"{SECOND}/more")
    return f"{SECOND}/more"


def answers_that_cannot_be_read(results: Results) -> str:
    path = results / f"{ANSWERS}/samples.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    results.rewrite(ANSWERS)
    return ANSWERS


def answers_that_unpack_to_too_much(results: Results) -> str:
    path = results / f"{ANSWERS}/samples.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(1025):
            stream.write(bytes(2**20))
    results.rewrite(ANSWERS)
    return ANSWERS


def card_that_promises_more(results: Results) -> str:
    path = results / f"{SECOND}/README.md"
    path.write_text(path.read_text(encoding="utf-8") + "The best model of all.\n", encoding="utf-8")
    return SECOND


def weights_of_fewer_numbers(results: Results) -> str:
    path = results / f"{SECOND}/model.safetensors"
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path, {"format": "pt"})
    results.rewrite(SECOND)
    return SECOND


def seed_of_another_type(results: Results) -> str:
    results.rewrite(SECOND, request={"seed": 3.0})
    return SECOND


def arm_that_is_hushed_up(results: Results) -> str:
    for path in results.folder.rglob("l1"):
        shutil.rmtree(path, ignore_errors=True)
    parameters = dict(read_manifest(results / "paper").request["parameters"])
    config = yaml.safe_load(parameters["config"])
    del config["arms"]["l1"]
    parameters["config"] = yaml.safe_dump(config, sort_keys=False)
    results.rewrite("paper", request={"parameters": parameters})
    return "collect_metrics"


def pipe_in_place_of_a_file(results: Results) -> str:
    os.mkfifo(results / f"{SECOND}/more.bin")
    return SECOND


def size_that_is_not_the_files(results: Results) -> str:
    files = dict(read_manifest(results / SECOND).files)
    old = files["model.safetensors"]
    files["model.safetensors"] = Produced(old.sha256, old.size + 1, old.tensors)
    results.rewrite(SECOND, files=files)
    return SECOND


def name_that_looks_the_same(results: Results) -> str:
    # A Cyrillic letter in it.
    path = results / f"{SECOND}/config.json"
    path.rename(path.with_name("c\u043enfig.json"))
    return SECOND


def named_too(results: Results, place: str, name: str, text: str) -> str:
    """Write a file into an artifact and have the statement name it."""
    (results / f"{place}/{name}").write_text(text, encoding="utf-8")
    files = read_manifest(results / place).files | {name: produced(results / f"{place}/{name}")}
    results.rewrite(place, files=files)
    return place


def code_beside_the_weights(results: Results) -> str:
    return named_too(results, SECOND, "modeling_more.py", "raise SystemExit")


def other_code_beside_the_weights(results: Results) -> str:
    return named_too(results, SECOND, "iskd_gpt2.py", "raise SystemExit")


def weights_of_another_kind(results: Results) -> str:
    return named_too(results, SECOND, "pytorch_model.bin", "a pickle")


def file_more_beside_the_answers(results: Results) -> str:
    return named_too(results, ANSWERS, "notes.md", "Good answers.")


def file_less_in_folder_and_statement(results: Results) -> str:
    (results / f"{SECOND}/history.jsonl").unlink()
    files = dict(read_manifest(results / SECOND).files)
    del files["history.jsonl"]
    results.rewrite(SECOND, files=files)
    return SECOND


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        *(
            (harm, Code.WRONG_FILES)
            for harm in (
                *(code_beside_the_weights, other_code_beside_the_weights, weights_of_another_kind),
                *(file_more_beside_the_answers, file_less_in_folder_and_statement),
            )
        ),
        (report_of_another_run, Code.WRONG_RUN),
        (statement_about_no_file, Code.EXTRA_FILE),
        (artifact_inside_another, Code.ORPHAN),
        (answers_that_cannot_be_read, Code.METRIC_NOT_FROM_ITEMS),
        (answers_that_unpack_to_too_much, Code.METRIC_NOT_FROM_ITEMS),
        (card_that_promises_more, Code.CONTENT_CHANGED),
        (weights_of_fewer_numbers, Code.WEIGHTS_NOT_AS_SAID),
        (seed_of_another_type, Code.STALE_CONFIG),
        (arm_that_is_hushed_up, Code.STALE_CONFIG),
        (pipe_in_place_of_a_file, Code.LINK),
        (size_that_is_not_the_files, Code.CONTENT_CHANGED),
        (name_that_looks_the_same, Code.MISSING_FILE),
    ],
)
def test_more_faults(harm: Callable[[Results], str], code: Code, results: Results) -> None:
    place = harm(results)
    assert (place, code) in results.codes()


def test_a_table_of_the_paper_edited_with_its_statement(results: Results) -> None:
    path = results / "paper/table_main.md"
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    results.rewrite("paper")
    assert ("paper", Code.NOT_FROM_METRICS) in results.codes(derive=True)


# --- trust ----------------------------------------------------------------------------------------


def forge_everything(results: Results) -> None:
    """Change answers, and all that follows of them, as one who knows this workflow would."""
    path = results / f"{ANSWERS}/samples.jsonl.gz"
    samples = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for sample in samples:
        sample["correct"] = dict.fromkeys(sample["correct"], True)
    from iskd.evaluation.results import write_result
    from iskd.evaluation.scores import metrics_of

    metrics = metrics_of(samples, "cbt_context", stock=False)
    facts = json.loads((results / f"{ANSWERS}/result.json").read_text("utf-8"))["facts"]
    write_result(results / ANSWERS, metrics, facts=facts, samples=samples)
    results.rewrite(ANSWERS, summary={name: metric.value for name, metric in metrics.items()})


def test_27_what_is_forged_from_end_to_end_has_another_root(
    finished: Clone, tmp_path: Path
) -> None:
    clone = finished.copy(tmp_path / "clone")
    forged = Results(clone.folder / RESULTS)
    root = forged.verdict().root
    assert root in (clone.folder / RESULTS / "paper_numbers/numbers.tex").read_text("utf-8")
    forge_everything(forged)
    done = clone.snakemake("--configfile", "tests/config/tiny.yaml", "-c", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert forged.codes() == set()
    assert forged.codes(root=root) == {("collect_metrics", Code.ROOT)}


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_what_it_found_and_exits_so(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(results / f"{SECOND}/model.safetensors")
    assert main(["verify", str(results.folder), "--fast"]) == 1
    out = capsys.readouterr().out
    assert f"CONTENT_CHANGED {SECOND}/model.safetensors: its bytes are not those" in out
    assert out.splitlines()[-1] == "FAIL (--at recorded): 1 finding"
    assert main(["verify", str(results.folder / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    shutil.rmtree(results / "paper")
    assert main(["verify", str(results.folder)]) == 2
    assert "give it with --configfile" in capsys.readouterr().err


def test_snakemake_audit_fails_where_something_is_found(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "clone")
    options = ("audit", "--configfile", "tests/config/tiny.yaml", "-c", "2")
    done = clone.snakemake(*options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "PASS (--at checkout): all is well" in done.stdout + done.stderr
    flip(clone.folder / RESULTS / f"{SECOND}/model.safetensors")
    done = clone.snakemake(*options)
    assert done.returncode == 1
    log = (clone.folder / RESULTS / "logs/audit.log").read_text(encoding="utf-8")
    assert "CONTENT_CHANGED" in log


def test_what_an_earlier_call_read_is_trusted_and_reported(
    results: Results, tmp_path: Path
) -> None:
    memory = tmp_path / "digests.json"
    first = results.verdict(memory=memory)
    second = results.verdict(memory=memory)
    assert first.findings == second.findings == []
    assert not any("trusted" in note for note in first.notes)
    assert any("trusted" in note for note in second.notes)
    path = results / f"{SECOND}/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert results.codes(memory=memory) == {(SECOND, Code.CONTENT_CHANGED)}


def test_a_config_that_cannot_be_planned_is_one_line(results: Results, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("study: tiny\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be planned"):
        results.verdict(config=config)


def test_nothing_is_written(results: Results) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.folder.rglob("*")}
    results.verdict(derive=True)
    assert {p: p.stat().st_mtime_ns for p in results.folder.rglob("*")} == before


# --- trace ----------------------------------------------------------------------------------------


def test_a_figure_is_traced_to_data_and_commit(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", str(results / "paper/figure_tradeoff_toy.pdf")]) == 0
    out = capsys.readouterr().out
    for place in (FIGURE, "collect_metrics", SECOND, "pretrain_teacher/toy", "make_toyworld"):
        assert place in out
    assert file_digest(results / FIGURE / MANIFEST) in out


@pytest.mark.parametrize("suffix", ["pdf", "png", "svg"])
def test_a_lone_figure_is_known_by_its_metadata(
    suffix: str, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = tmp_path / f"figure.{suffix}"
    # Somebody has added a byte; the digest of the file does not help any more.
    lone.write_bytes((results / f"{FIGURE}/tradeoff.{suffix}").read_bytes() + b"\n")
    assert main(["trace", str(lone), "--study", str(results.folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(FIGURE)
    assert "names what it was asked for with" in out
    page = tmp_path / "trace.html"
    assert main(["trace", str(lone), "--study", str(results.folder), "--html", str(page)]) == 0
    assert "make_toyworld" in page.read_text(encoding="utf-8")


def test_a_number_is_traced_to_the_evaluations_it_is_the_mean_of(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["--study", str(results.folder)]
    assert main(["trace", "iskdToyIskdCbtContextAcc", *study]) == 0
    capsys.readouterr()
    assert main(["trace", "\\iskdToyIskdCbtContextAcc", *study]) == 0
    out = capsys.readouterr().out
    assert f"+- {ANSWERS}\n" in out
    assert "evaluate/toy/iskd/seed_3/step_01" not in out
    assert main(["trace", "\\iskdNone", *study]) == 2
    assert "no number is called" in capsys.readouterr().err


def test_a_copy_under_another_name_is_still_the_study(results: Results) -> None:
    moved = results.folder.rename(results.folder.with_name("theirs"))
    verdict = verify(moved, derive=False)
    assert (verdict.study, verdict.findings) == ("tiny", [])
    assert main(["trace", str(moved / f"{FIGURE}/tradeoff.png")]) == 0


def test_what_no_statement_is_about_is_one_line(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = tmp_path / "stranger.png"
    stranger.write_bytes(b"something else")
    assert main(["trace", str(stranger), "--study", str(results.folder)]) == 2
    assert "no statement of" in capsys.readouterr().err
    assert main(["trace", str(stranger)]) == 2
    assert "name one with --study" in capsys.readouterr().err


# --- diff -----------------------------------------------------------------------------------------


def test_two_runs_are_distinguished_by_what_differs(
    finished: Clone, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = str(finished.folder / RESULTS)
    assert main(["diff", theirs, str(results.folder)]) == 0
    assert "numbers: no differences" in capsys.readouterr().out
    flip(results / f"{SECOND}/model.safetensors")
    results.rewrite(SECOND, request={"lock": "3" * 64})
    table = results / "metrics.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:-1]), encoding="utf-8")
    assert main(["diff", theirs, str(results.folder)]) == 1
    out = capsys.readouterr().out
    assert "config: no differences" in out
    assert "environment: 1 difference\n  lock of packages: " in out
    assert f"models: 1 difference\n  {SECOND}: model.safetensors" in out
    assert "numbers: 1 difference\n  toy/" in out
    assert main(["diff", theirs, theirs + "/nothing"]) == 2
