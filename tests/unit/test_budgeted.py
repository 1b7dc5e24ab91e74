"""All changes at once: the integer program against every subset, and the budget in a model."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iskd.errors import UserError
from iskd.training.budgeted import BudgetedChooser, Part, least_damage, parts_of
from iskd.training.choice import Change
from iskd.training.divergence import TeacherAnswers
from tests.unit.conftest import MakeModel
from tests.unit.test_choice import ALL, TEXTS, count

LEVELS = [
    Change(block, *level)
    for block in range(2)
    for level in (("heads", 1, 8), ("attention", 0, 8), ("neurons", 2, 4), ("mlp", 2, 0))
] + [Change(1, "block", 0, 0)]
PAIRS: list[tuple[Part, Part]] = [
    ((0, "attention"), (0, "mlp")),
    ((1, "attention"), (1, "mlp")),
    ((0, "mlp"), (1, "mlp")),
]
DAMAGES = st.lists(st.integers(-5, 50).map(float), min_size=len(LEVELS), max_size=len(LEVELS))
TOGETHER = st.lists(st.integers(-20, 20).map(float), min_size=3, max_size=3)
SAVED = {"heads": 2, "attention": 4, "neurons": 3, "mlp": 6, "block": 10}


def cost(
    chosen: list[Change], damage: dict[Change, float], together: dict[tuple[Part, Part], float]
) -> float | None:
    """Give what a set of changes costs; None where it changes a part twice.

    A block that is left out as a whole was measured as a whole: its two parts are no pair.
    """
    by_part = {part: change for change in chosen for part in parts_of(change)}
    if len(by_part) < sum(len(parts_of(change)) for change in chosen):
        return None
    pairs = sum(
        value
        for (one, other), value in together.items()
        if one in by_part and other in by_part and by_part[one] != by_part[other]
    )
    return sum(damage[change] for change in chosen) + pairs


@settings(max_examples=40, deadline=None)
@given(DAMAGES, TOGETHER, st.integers(1, 20))
def test_no_other_set_of_changes_within_the_budget_costs_less(
    damages: list[float], beyond: list[float], needed: int
) -> None:
    damage = dict(zip(LEVELS, damages, strict=True))
    together = dict(zip(PAIRS, beyond, strict=True))
    saved = {change: SAVED[change.kind] for change in LEVELS}
    sets = (
        [change for change, taken in zip(LEVELS, which, strict=True) if taken]
        for which in product((False, True), repeat=len(LEVELS))
    )
    allowed = [
        value
        for chosen in sets
        if sum(saved[change] for change in chosen) >= needed
        and (value := cost(chosen, damage, together)) is not None
    ]
    found = least_damage(damage, saved, together, needed)
    assert sum(saved[change] for change in found) >= needed
    assert cost(found, damage, together) == pytest.approx(min(allowed), abs=0.01)


def test_a_budget_that_no_set_meets_is_one_line() -> None:
    change = Change(0, "mlp", 2, 0)
    with pytest.raises(UserError, match="ask for less reduction"):
        least_damage({change: 1.0}, {change: 6}, {}, 7)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_budget_is_met_at_once(family: str, tiny_model: MakeModel) -> None:
    teacher, model = tiny_model(family, blocks=4), tiny_model(family, blocks=4)
    most = round(0.8 * count(teacher))
    taken = BudgetedChooser(model, teacher, TEXTS, ALL).take(most, least=most)
    narrowed = any(row["kind"] == "neurons" for row in taken)
    one = 3 * model.config.hidden_size + 3
    assert count(model) <= most
    assert count(model) >= most - one or not narrowed
    assert sum(row["saved"] for row in taken) == count(teacher) - count(model)
    answers = TeacherAnswers(teacher, TEXTS.validation, 4)
    values = [answers.divergence(model.eval(), number) for number in range(4)]
    assert taken[-1]["divergence"] == pytest.approx(sum(values) / 4, rel=1e-4)


def test_what_was_chosen_is_made_again_to_the_same_bits(tiny_model: MakeModel) -> None:
    teacher = tiny_model("llama", blocks=4)
    first, second = tiny_model("llama", blocks=4), tiny_model("llama", blocks=4)
    taken = BudgetedChooser(first, teacher, TEXTS, ALL).take(
        round(0.8 * count(teacher)), least=round(0.8 * count(teacher))
    )
    assert len(taken) > 1
    BudgetedChooser(second, teacher, TEXTS, ALL).repeat(taken)
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in mine.items())


def test_pairs_are_measured_without_leaving_a_trace(tiny_model: MakeModel) -> None:
    teacher, model = tiny_model("llama", blocks=4), tiny_model("llama", blocks=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chooser = BudgetedChooser(model, teacher, TEXTS, ALL)
    levels = chooser._levels()
    pairs = chooser._pairs(levels)
    assert ((0, "attention"), (0, "mlp")) in pairs
    assert ((1, "mlp"), (2, "mlp")) in pairs
    values = [chooser._both(*pair) for pair in pairs.values()]
    assert values == [chooser._both(*pair) for pair in pairs.values()]
    after = model.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())
