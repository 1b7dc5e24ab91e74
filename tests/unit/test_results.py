"""One evaluation on disk, and all of a study's in one table."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from iskd.errors import UserError
from iskd.evaluation.collect import FACTS, collect
from iskd.evaluation.metric import Metric
from iskd.evaluation.results import (
    RESULT,
    SAMPLES,
    read_result,
    read_samples,
    write_result,
    write_samples,
)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    metrics = {"acc": Metric(0.5, 0.1, 25), "loss": Metric(1.25, None, 1)}
    write_result(tmp_path, metrics, facts={"chance": 0.1}, samples=[{"b": 1, "a": 2}, {"a": 3}])
    found = read_result(tmp_path / RESULT)
    none = dict.fromkeys(("low", "high", "clusters"))
    assert found == {
        "metrics": {
            "acc": {"value": 0.5, "stderr": 0.1, "n": 25} | none,
            "loss": {"value": 1.25, "stderr": None, "n": 1} | none,
        },
        "facts": {"chance": 0.1},
    }
    lines = gzip.decompress((tmp_path / SAMPLES).read_bytes()).decode().splitlines()
    assert lines == ['{"a": 2, "b": 1}', '{"a": 3}']
    assert read_samples(tmp_path / SAMPLES) == [{"a": 2, "b": 1}, {"a": 3}]


def test_samples_are_the_same_bytes_whatever_the_time_and_the_name(tmp_path: Path) -> None:
    samples = [{"index": i, "source": f"Böck {i // 2}"} for i in range(40)]
    one, other = tmp_path / "one.gz", tmp_path / "other.gz"
    write_samples(one, samples)
    write_samples(other, iter(samples))
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes()[3:8] == bytes(5)  # no flags, so no name; seconds 0 (RFC 1952, 2.3)
    assert read_samples(one) == samples


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / SAMPLES
    with pytest.raises(UserError, match="no such file"):
        read_samples(path)
    write_samples(path, [{"index": i} for i in range(1000)])
    whole = path.read_bytes()
    for damaged in (whole[:-30], b"plain text\n", gzip.compress(b"{not json}\n")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as caught:
            read_samples(path)
        assert str(path) in str(caught.value)


def test_without_items_there_is_no_file_of_samples(tmp_path: Path) -> None:
    write_result(tmp_path, {"loss": Metric(1.0, None, 1)})
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]
    assert read_result(tmp_path / RESULT)["facts"] == {}


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, {"loss": Metric(float("nan"), None, 1)})
    assert not (tmp_path / RESULT).exists()


MODELS: list[dict[str, Any]] = [
    {"teacher": "t", "arm": "teacher", "seed": None, "step": 0},
    {"teacher": "t", "arm": "iskd", "seed": 1, "step": 1},
    {"teacher": "t", "arm": "iskd", "seed": 1, "step": 2},
    {"teacher": "u", "arm": "teacher", "seed": None, "step": 0},
    {"teacher": "u", "arm": "iskd", "seed": 1, "step": 1},
    # A finished model of the hub has no seed and step 0, as a teacher.
    {"teacher": "u", "arm": "finished", "seed": None, "step": 0},
]
PARAMETERS = [100, 75, 60, 1000, 500, 250]


# Six items from three passages: what the teacher and the model chose, and what was right.
SOURCES = ("a", "a", "b", "b", "c", "c")
TARGETS = (0, 1, 0, 1, 0, 1)
TEACHERS = (0, 1, 0, 1, 1, 0)
OURS = (0, 0, 0, 1, 1, 1)


def answers(choices: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "source": source,
            "target": target,
            "choice": {"acc": choice},
            "correct": {"acc": choice == target},
        }
        for index, (source, target, choice) in enumerate(
            zip(SOURCES, TARGETS, choices, strict=True)
        )
    ]


def study(folder: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Write the results of two teachers, each with its own size."""
    names = ("evaluations", "samples", "heldout", "histories", "substitutions", "generations")
    files: dict[str, list[str]] = {name: [] for name in (*names, "overlaps")}
    about: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    for number, (model, parameters) in enumerate(zip(MODELS, PARAMETERS, strict=True)):
        for text in ("heldout", "elsewhere"):
            where = place(f"{text}{number}")
            facts = {"parameters": parameters, "flops_per_token": 2 * parameters}
            facts["checkpoint_bytes"] = 4 * parameters
            write_result(where, {"loss": Metric(float(number), 0.5, 9)}, facts=facts)
            files["heldout"].append(str(where / RESULT))
            texts.append({**model, "text": text})
        for task in ("cloze", "endings"):
            where = place(f"{task}{number}")
            samples = answers(TEACHERS if model["arm"] == "teacher" else OURS)
            metrics = {"acc": Metric(number / 10, None, 6)}
            write_result(where, metrics, facts={"chance": 0.5}, samples=samples)
            files["evaluations"].append(str(where / RESULT))
            files["samples"].append(str(where / SAMPLES))
            about.append({**model, "task": task})
        if model["seed"] is not None:
            curve = folder / f"history{number}.jsonl"
            rows = [{"tokens": 5 * n, "flops": 100 * n + number} for n in (1, 2)]
            curve.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files["histories"].append(str(curve))
            block = folder / f"substitution{number}.json"
            block.write_text(json.dumps({"block": 10 + number}))
            files["substitutions"].append(str(block))
    where = place("overlap")
    write_result(where, {"overlap": Metric(0.25, 0.1, 4)})
    files["overlaps"].append(str(where / RESULT))
    where = place("generation")
    write_result(where, {"distinct_1": Metric(0.75, None, 40)})
    files["generations"].append(str(where / RESULT))
    trained = [model for model in MODELS if model["seed"] is not None]
    spec = {
        "study": "s",
        "evaluations": about,
        "heldout": texts,
        "histories": trained,
        "substitutions": trained,
        "generations": MODELS[:1],
        "overlaps": [{"task": "cloze"}],
        "chained": ["iskd"],
        "bootstrap": {"resamples": 200, "seed": 1},
    }
    return files, spec


def test_every_number_becomes_one_row_with_its_models_reduction(tmp_path: Path) -> None:
    rows = collect(*study(tmp_path))
    by = {(r["teacher"], r["arm"], r["step"], r["task"], r["metric"]): r for r in rows}
    assert len(by) == len(rows)
    reductions = {(r["teacher"], r["arm"], r["step"]): r["reduction"] for r in rows}
    assert reductions == {
        ("t", "teacher", 0): 0,
        ("t", "iskd", 1): 0.25,
        ("t", "iskd", 2): pytest.approx(0.4),
        ("u", "teacher", 0): 0,
        ("u", "iskd", 1): 0.5,
        ("u", "finished", 0): 0.75,
    }
    last = by["t", "iskd", 2, "endings", "acc"]
    assert (last["study"], last["seed"], last["value"], last["n"]) == ("s", 1, 0.2, 6)
    assert by["t", "iskd", 1, "elsewhere", "loss"]["value"] == 1
    facts = {m: by["u", "teacher", 0, "model", m]["value"] for m in FACTS}
    assert facts == {"parameters": 1000, "flops_per_token": 2000, "checkpoint_bytes": 4000}
    # The steps of a chain build on one another, so their costs add up; a teacher has none.
    costs = {s: by["t", "iskd", s, "training", "flops"]["value"] for s in (1, 2)}
    assert costs == {1: 201, 2: 201 + 202}
    assert by["t", "iskd", 2, "training", "tokens"]["value"] == 20
    assert ("t", "teacher", 0, "training", "flops") not in by
    assert by["t", "iskd", 2, "model", "replaced_block"]["value"] == 12
    assert by["t", "teacher", 0, "generation", "distinct_1"]["value"] == 0.75
    # What the corpus shares with a task is no model's; it stands beside each teacher.
    assert {k[:3] for k in by if k[4] == "overlap"} == {("t", "teacher", 0), ("u", "teacher", 0)}
    json.dumps(rows)


def test_models_are_compared_with_their_teacher_item_by_item(tmp_path: Path) -> None:
    rows = collect(*study(tmp_path))
    own = {
        r["metric"]: r for r in rows if (r["teacher"], r["step"], r["task"]) == ("t", 1, "cloze")
    }
    # Right: teacher 4 of 6, model 4 of 6; the second item is lost and the last one gained.
    assert own["acc_difference"]["value"] == 0
    assert own["acc_flipped"]["value"] == pytest.approx(2 / 6)
    assert own["acc_changed"]["value"] == pytest.approx(2 / 6)
    assert own["acc_mcnemar"]["value"] == 1
    assert own["acc_retention"]["value"] == 1
    assert own["acc_margin"]["value"] == pytest.approx(1)
    assert {own[m]["clusters"] for m in ("acc_difference", "acc_flipped", "acc_changed")} == {3}
    teachers = {r["metric"]: r["value"] for r in rows if r["arm"] == "teacher"}
    assert teachers["chance"] == 0.5
    assert not [name for name in teachers if name.startswith("acc_")]


def test_perplexities_are_not_compared_item_by_item(tmp_path: Path) -> None:
    files, spec = study(tmp_path)
    for result, path in zip(files["evaluations"], files["samples"], strict=True):
        write_result(Path(result).parent, {"word_perplexity": Metric(30.0, 1.0, 6)})
        samples = [
            {"index": i, "source": s, "choice": {}, "correct": {}, "scores": {}}
            | {"sums": {"word_perplexity": [-3.0, 2]}}
            for i, s in enumerate(SOURCES)
        ]
        write_samples(Path(path), samples)
    rows = collect(files, spec)
    assert {r["metric"] for r in rows if r["task"] == "endings"} == {"word_perplexity"}


def test_answers_to_other_items_are_refused(tmp_path: Path) -> None:
    files, spec = study(tmp_path)
    path = Path(files["samples"][2])
    write_samples(path, answers(OURS)[1:])
    with pytest.raises(UserError, match="other items than the teacher's") as caught:
        collect(files, spec)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["evaluations", "heldout", "histories", "substitutions"])
def test_lists_that_do_not_match_are_a_bug(tmp_path: Path, name: str) -> None:
    files, spec = study(tmp_path)
    with pytest.raises(ValueError, match="zip"):
        collect(files | {name: files[name][:-1]}, spec)


def test_steps_that_do_not_build_on_one_another_are_not_added_up(tmp_path: Path) -> None:
    files, spec = study(tmp_path)
    rows = collect(files, {**spec, "chained": []})
    flops = {r["step"]: r["value"] for r in rows if (r["teacher"], r["metric"]) == ("t", "flops")}
    assert flops == {1: 201, 2: 202}
