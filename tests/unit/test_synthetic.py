"""The studies that nobody ran pass the checks of the tables they stand for."""

import pytest

from iskd.paper.metrics import tidy

from .synthetic import GPT2_ARMS, GPT2_TASKS, make_metrics, some_arms


@pytest.mark.parametrize("arms", [1, 8, 15])
@pytest.mark.parametrize("seeds", [(17,), (17, 18, 19)])
@pytest.mark.parametrize("steps", [2, 24])
def test_rows_are_those_of_a_study(arms: int, seeds: tuple[int, ...], steps: int) -> None:
    given = some_arms(arms)
    metrics, measurements = make_metrics(given, seeds, steps)
    frame = tidy(metrics)
    assert set(frame["arm"]) == {"teacher", *given}
    assert set(tidy(measurements)["arm"]) == {"teacher", *given}
    accuracies = frame[frame["metric"].isin(["acc", "acc_norm"])]
    assert accuracies["value"].between(0, 1).all()
    replaced = frame[(frame["arm"] == "iskd") & (frame["metric"] == "replaced_block")]
    assert sorted(replaced.loc[replaced["seed"] == 17, "value"]) == list(range(steps))


def test_flips_are_at_least_the_difference() -> None:
    rows = make_metrics()[0]
    model = ("arm", "seed", "step", "task", "metric")
    values = {tuple(row[key] for key in model): row["value"] for row in rows}
    flips = {key: value for key, value in values.items() if key[-1].endswith("_flipped")}
    assert len(flips) > 100
    for key, flipped in flips.items():
        difference = values[(*key[:-1], key[-1].replace("flipped", "difference"))]
        assert flipped >= abs(difference) - 1e-9


def test_numbers_are_gpt2s() -> None:
    frame = tidy(make_metrics(GPT2_ARMS, (17,), 12, GPT2_TASKS)[0])
    row = frame[(frame["arm"] == "iskd") & (frame["step"] == 6)].iloc[0]
    assert row["reduction"] == pytest.approx(0.306775, abs=1e-6)
