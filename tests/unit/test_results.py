"""One evaluation on disk, and all of a study's in one table."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from iskd.errors import UserError
from iskd.evaluation.collect import collect
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
    assert found == {
        "metrics": {
            "acc": {"value": 0.5, "stderr": 0.1, "n": 25},
            "loss": {"value": 1.25, "stderr": None, "n": 1},
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


def study(folder: Path) -> tuple[list[str], list[str], list[str], dict[str, Any]]:
    """Write the results of two teachers, each with its own size."""
    evaluations, heldout, histories, about = [], [], [], []
    for number, (model, parameters) in enumerate(zip(MODELS, PARAMETERS, strict=True)):
        place = folder / f"heldout{number}"
        place.mkdir()
        facts = {"parameters": parameters, "flops_per_token": 2 * parameters}
        write_result(place, {"loss": Metric(float(number), 0.5, 9)}, facts=facts)
        heldout.append(str(place / RESULT))
        for task in ("cloze", "endings"):
            place = folder / f"{task}{number}"
            place.mkdir()
            write_result(place, {"acc": Metric(number / 10, None, 7)})
            evaluations.append(str(place / RESULT))
            about.append({**model, "task": task})
        if model["seed"] is not None:
            curve = folder / f"history{number}.jsonl"
            rows = [{"tokens": 5 * n, "flops": 100 * n + number} for n in (1, 2)]
            curve.write_text("".join(json.dumps(row) + "\n" for row in rows))
            histories.append(str(curve))
    trained = [model for model in MODELS if model["seed"] is not None]
    spec = {
        "study": "s",
        "evaluations": about,
        "heldout": MODELS,
        "histories": trained,
        "chained": ["iskd"],
    }
    return evaluations, heldout, histories, spec


def test_every_number_becomes_one_row_with_its_models_reduction(tmp_path: Path) -> None:
    rows = collect(*study(tmp_path))
    assert len(rows) == len(MODELS) * 5 + 3 * 2
    assert len({frozenset(row) for row in rows}) == 1
    finished = [row for row in rows if row["arm"] == "finished"]
    rows = [row for row in rows if row["arm"] != "finished"]
    assert len(finished) == 5
    assert {row["reduction"] for row in finished} == {0.75}
    by = {(r["teacher"], r["step"], r["task"], r["metric"]): r for r in rows}
    assert len(by) == len(rows)
    last = by["t", 2, "endings", "acc"]
    assert last == {
        "study": "s",
        "teacher": "t",
        "arm": "iskd",
        "seed": 1,
        "step": 2,
        "reduction": pytest.approx(0.4),
        "task": "endings",
        "metric": "acc",
        "value": 0.2,
        "stderr": None,
        "n": 7,
    }
    assert by["u", 1, "heldout", "loss"]["reduction"] == pytest.approx(0.5)
    assert by["u", 0, "model", "parameters"]["value"] == 1000
    assert by["u", 0, "model", "flops_per_token"]["value"] == 2000
    # The steps of a chain build on one another, so their costs add up; a teacher has none.
    costs = {step: by["t", step, "training", "flops"]["value"] for step in (1, 2)}
    assert costs == {1: 201, 2: 201 + 202}
    assert by["t", 2, "training", "tokens"]["value"] == 20
    assert ("t", 0, "training", "flops") not in by
    assert {r["reduction"] for r in rows if r["step"] == 0} == {0.0}
    json.dumps(rows)


def test_lists_that_do_not_match_are_a_bug(tmp_path: Path) -> None:
    evaluations, heldout, histories, spec = study(tmp_path)
    for lists in (
        (evaluations[:-1], heldout, histories),
        (evaluations, heldout[:-1], histories),
        (evaluations, heldout, histories[:-1]),
    ):
        with pytest.raises(ValueError, match="zip"):
            collect(*lists, spec)


def test_steps_that_do_not_build_on_one_another_are_not_added_up(tmp_path: Path) -> None:
    evaluations, heldout, histories, spec = study(tmp_path)
    rows = collect(evaluations, heldout, histories, {**spec, "chained": []})
    flops = {r["step"]: r["value"] for r in rows if (r["teacher"], r["metric"]) == ("t", "flops")}
    assert flops == {1: 201, 2: 202}
