"""The tidy table: its bytes, its checks, and what is computed from it."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iskd.errors import UserError
from iskd.evaluation.retention import corrected_retention, retention
from iskd.paper.csv_text import csv_text
from iskd.paper.measures import measure
from iskd.paper.metrics import (
    KEY_COLUMNS,
    METRIC_COLUMNS,
    read_metrics,
    tidy,
    write_metrics,
)
from iskd.paper.queries import aggregate, check_chance, headline_panels

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    start = {
        "study": "toy",
        "teacher": "gpt2",
        "arm": "iskd",
        "seed": 17,
        "step": 1,
        "reduction": 0.25,
    }
    start |= {"task": "hellaswag", "metric": "acc", "value": 0.29, "stderr": 0.0045, "n": 10042}
    return start | changes


def teacher_row(**changes: Any) -> Row:
    return row(**({"arm": "teacher", "seed": None, "step": 0, "reduction": 0.0} | changes))


names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
finite = st.floats(-1e300, 1e300)
rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "study": names,
            "teacher": names,
            "arm": names.filter(lambda name: name != "teacher"),
            "seed": st.none() | st.integers(0, 2**32),
            "step": st.integers(0, 99),
            "reduction": st.just(0.25),
            "task": names,
            "metric": names,
            "value": finite | st.integers(0, 2**52),
            "stderr": st.none() | finite.map(abs),
            "n": st.none() | st.integers(0, 10**9),
        }
    ),
    max_size=8,
    unique_by=lambda r: tuple(str(r[k]) for k in KEY_COLUMNS),
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_strategy, data=st.data())
def test_order_of_rows_does_not_matter_and_files_round_trip(
    rows: list[Row], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    one, other, again = folder / "one.csv", folder / "other.csv", folder / "again.csv"
    write_metrics(rows, one)
    write_metrics(data.draw(st.permutations(rows)), other)
    assert one.read_bytes() == other.read_bytes()
    frame = read_metrics(one)
    pd.testing.assert_frame_equal(frame, tidy(rows))
    mixed = tidy(frame.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(mixed, frame)
    write_metrics(frame, again)
    assert again.read_bytes() == one.read_bytes()


def test_the_file_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    count = {"task": "model", "metric": "parameters", "value": 124439808, "stderr": None, "n": None}
    interval = {"low": -0.1, "high": 0.2, "clusters": 7}
    rows = [row(seed=2, value=1 / 3), teacher_row(**count), row(seed=10, value=-0.0, **interval)]
    write_metrics(rows, path)
    assert path.read_bytes().decode() == (
        "study,teacher,arm,seed,step,reduction,task,metric,value,stderr,low,high,n,clusters\n"
        "toy,gpt2,iskd,2,1,0.25,hellaswag,acc,0.3333333333,0.0045,,,10042,\n"
        "toy,gpt2,iskd,10,1,0.25,hellaswag,acc,0,0.0045,-0.1,0.2,10042,7\n"
        "toy,gpt2,teacher,,0,0,model,parameters,124439808,,,,,\n"
    )


def test_reading_gives_types(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics([row(), teacher_row(stderr=None, n=None)], path)
    frame = read_metrics(path)
    assert tuple(frame.columns) == METRIC_COLUMNS
    assert [str(frame[c].dtype) for c in ("seed", "n", "step", "value")] == [
        "Int64",
        "Int64",
        "int64",
        "float64",
    ]
    assert frame["seed"].isna().tolist() == [False, True]
    assert math.isnan(frame["stderr"].iloc[1])


def test_counts_beyond_ten_digits_stay_exact() -> None:
    text = csv_text(tidy([row(task="model", metric="parameters", value=13_015_864_321)]))
    assert ",13015864321," in text


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics([row()], path)
    frame = read_metrics(path)
    path.write_text(csv_text(frame[list(reversed(METRIC_COLUMNS))]))
    pd.testing.assert_frame_equal(read_metrics(path), frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing columns: study"),
        ("study,teacher\n", "missing columns: arm"),
        (",".join((*METRIC_COLUMNS, "extra")) + "\n", "unknown columns: extra"),
        (",".join((*METRIC_COLUMNS, "n")) + "\n", "twice"),
        (",".join(METRIC_COLUMNS) + "\na,b\n", "row 1: 2 cells"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_metrics(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": ""}, "arm is ''"),
        ({"task": "a\nb"}, "task is"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"step": None}, "step is None"),
        ({"step": "two"}, "step is 'two'"),
        ({"n": True}, "n is True"),
        ({"value": math.nan}, "value is nan"),
        ({"value": math.inf}, "value is inf"),
        ({"value": None}, "value is None"),
        ({"value": 1.7976931348623157e308}, "value is 1.79"),
        ({"value": "N/A"}, "value is 'N/A'"),
        ({"stderr": -0.1}, "stderr is negative"),
        ({"reduction": 30.68}, "fraction below 1"),
        ({"arm": "teacher"}, "the teacher has step 0"),
    ],
)
def test_a_wrong_cell_is_refused(changes: Row, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tidy([row(), row(**({"seed": 18} | changes))], "here")
    assert "here, row 2" in str(caught.value)


def test_rows_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(
        UserError, match="two rows for toy / gpt2 / iskd / 17 / 1 / hellaswag / acc"
    ):
        tidy([row(), row(value=0.3)])
    with pytest.raises(UserError, match="two reductions"):
        tidy([row(), row(task="cbt_context", reduction=0.26)])


def test_what_is_kept_is_measured_from_nothing_or_from_chance() -> None:
    # The claim "94.25 % of HellaSwag kept" seen as what is kept of the margin over chance.
    assert retention(0.9425 * 0.2892, 0.2892) == pytest.approx(0.9425)
    assert corrected_retention(0.9425 * 0.2892, 0.2892, 0.25) == pytest.approx(0.5758, abs=1e-4)
    assert corrected_retention(0.25, 0.2892, 0.25) == 0
    assert math.isnan(retention(0.1, 0.0))
    assert math.isnan(corrected_retention(0.2, 0.24, 0.25))


def test_a_measure_knows_which_direction_is_better() -> None:
    assert measure("acc_norm").higher_is_better
    assert not measure("loss").higher_is_better
    with pytest.raises(UserError, match="'accuracy' is not known"):
        measure("accuracy")


def test_headline_panels_end_with_the_loss() -> None:
    loss = {"task": "heldout", "metric": "loss", "value": 3.1}
    frame = tidy([row(), row(metric="acc_norm"), row(task="cbt_context"), row(**loss)])
    panels = headline_panels(frame, {"heldout": "loss", "hellaswag": "acc", "cbt_context": "acc"})
    assert panels == [("hellaswag", "acc"), ("cbt_context", "acc"), ("heldout", "loss")]
    assert headline_panels(frame, {"hellaswag": "acc_norm"})[-1] == ("heldout", "loss")
    assert headline_panels(tidy([row()]), {"hellaswag": "acc"}) == [("hellaswag", "acc")]


@pytest.mark.parametrize(
    ("headline", "message"),
    [
        ({}, "at least one task"),
        ({"hellaswag": "acc_norm"}, "was not measured; for hellaswag: acc"),
        ({"arc": "acc"}, "for arc: nothing"),
        ({"heldout": "perplexity"}, "is 'loss'"),
    ],
)
def test_a_wrong_headline_is_refused(headline: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        headline_panels(tidy([row()]), headline)


@pytest.mark.parametrize("level", [25.0, 1.0, -0.1, math.nan])
def test_a_wrong_chance_level_is_refused(level: float) -> None:
    with pytest.raises(UserError, match="hellaswag"):
        check_chance({"hellaswag": level})


def test_spread_is_over_seeds_or_over_the_items_of_one() -> None:
    rows = [row(seed=s, value=v) for s, v in ((1, 0.2), (2, 0.3), (3, 0.7))]
    rows += [row(arm="kd", value=0.5, stderr=0.1, low=0.31, high=0.68)]
    rows += [row(arm="l1", stderr=None), row(arm="l2", low=0.2, high=0.28), teacher_row()]
    table = aggregate(tidy(rows)).set_index("arm")
    seeds = table.loc["iskd"]
    assert (seeds["value"], seeds["low"], seeds["high"]) == pytest.approx((0.4, 0.2, 0.7))
    assert (seeds["seeds"], seeds["spread_of"]) == (3, "seeds")
    assert seeds["spread"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    items = table.loc["kd"]
    assert items["spread_of"] == "items"
    assert (items["spread"], items["low"], items["high"]) == pytest.approx((0.1, 0.31, 0.68))
    # An interval of another kind than the value need not hold it; the value stays what it is.
    assert table.loc["l2", "value"] == 0.29
    bare = table.loc["l1"]
    assert (bare["value"], bare["spread_of"]) == (0.29, "")
    assert bare[["spread", "low", "high"]].isna().all()


def test_the_mean_lies_between_the_seeds() -> None:
    table = aggregate(tidy([row(seed=s, value=0.1) for s in range(3)]))
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
