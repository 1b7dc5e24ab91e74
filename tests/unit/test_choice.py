"""A measured choice: its candidates, its budget, and that the cheapest change goes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import ChangedBlocks, NarrowSizes, family_of
from iskd.models.substitution import block_sizes, settle_blocks
from iskd.runtime.workdir import WorkFolder
from iskd.settings import ChangeKind, SizeRequest, StartSettings, StepSettings
from iskd.training import parts
from iskd.training.choice import NEAR, Change, Chooser, Texts, candidates
from iskd.training.divergence import TeacherAnswers
from iskd.training.trials import ReturningWalk
from tests.unit.conftest import FAMILIES, SHARE, VOCABULARY, MakeModel
from tests.unit.test_steps import STEP

ALL: tuple[ChangeKind, ...] = ("attention", "heads", "mlp", "neurons", "block")


def text(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (count, 12), generator=generator, dtype=torch.int32)


TEXTS = Texts(text(24, 1), text(16, 2), 4, half=False)


def count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sizes_of(model: PreTrainedModel) -> dict[int, NarrowSizes]:
    blocks = range(model.config.num_hidden_layers)
    return {index: block_sizes(model.config, index) for index in blocks}


def test_the_divergence_is_that_of_all_positions_where_they_fit(tiny_model: MakeModel) -> None:
    teacher, other = tiny_model("llama").eval(), tiny_model("llama", seed=5).eval()
    answers = TeacherAnswers(teacher, text(6), 4)
    ids = text(6)[:4].long()
    with torch.no_grad():
        wanted, given = (
            model(ids).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in (teacher, other)
        )
    expected = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
    assert answers.divergence(other, 0) == pytest.approx(float(expected), rel=0.01)
    assert answers.divergence(teacher, 1) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_are_what_a_block_still_has(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family, blocks=4)
    now, share = block_sizes(model.config, 3), SHARE.get(family, 1)
    found = [c for c in candidates(model.config, sizes_of(model), ALL) if c.block == 3]
    assert found == [
        Change(3, "attention", 0, now.mlp),
        Change(3, "heads", now.heads - share, now.mlp),
        Change(3, "mlp", now.heads, 0),
        Change(3, "neurons", now.heads, now.mlp * 3 // 4),
        Change(3, "block", 0, 0),
    ]
    bare = candidates(model.config, {3: NarrowSizes(share, 0)}, ALL)
    assert [c.key for c in bare] == ["3/block"]
    assert not candidates(model.config, {0: NarrowSizes(share, 0), 3: NarrowSizes(0, 0)}, ALL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_is_met_to_within_one_neuron(family: str, tiny_model: MakeModel) -> None:
    teacher, model = tiny_model(family, blocks=4), tiny_model(family, blocks=4)
    most = round(0.8 * count(teacher))
    chooser = Chooser(model, teacher, TEXTS, ALL)
    taken = chooser.take(most, least=most)
    one = 3 * model.config.hidden_size + 3
    assert most - one <= count(model) <= most
    assert sum(row["saved"] for row in taken) == count(teacher) - count(model)
    sizes = {row["block"]: NarrowSizes(row["heads"], row["mlp"]) for row in taken}
    settled, _ = settle_blocks(model, sizes)
    assert count(settled) == count(model)
    answers = TeacherAnswers(teacher, TEXTS.validation, 4)
    values = [answers.divergence(settled.eval(), number) for number in range(4)]
    assert taken[-1]["divergence"] == pytest.approx(sum(values) / 4, rel=1e-4)


def test_the_change_that_costs_least_by_parameter_goes_first(tiny_model: MakeModel) -> None:
    teacher, model = (tiny_model("gpt2", blocks=4) for _ in range(2))
    for one in (teacher, model):
        with torch.no_grad():
            block: Any = family_of(one.config).blocks(one)[2]
            # What this MLP writes is nothing: to leave it out costs nothing.
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
    taken = Chooser(model, teacher, TEXTS, ALL).take(count(teacher) - 1, least=None)
    assert [(row["block"], row["heads"], row["mlp"]) for row in taken] == [
        (2, block_sizes(teacher.config, 2).heads, 0)
    ]
    assert taken[0]["divergence"] == pytest.approx(0, abs=1e-4)


def test_a_step_before_the_last_does_not_go_beyond_the_last_ones_budget(
    tiny_model: MakeModel,
) -> None:
    teacher, model = (tiny_model("gpt2", blocks=4) for _ in range(2))
    for one in (teacher, model):
        with torch.no_grad():
            block: Any = family_of(one.config).blocks(one)[2]
            # The whole block writes nothing: to leave it out costs nothing.
            for part in (block.mlp.c_proj, block.attn.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    least = count(teacher) - 5 * teacher.config.hidden_size
    Chooser(model, teacher, TEXTS, ALL).take(count(teacher) - 1, least=least)
    assert least - 2 * teacher.config.hidden_size - 1 <= count(model) < count(teacher)


def test_every_steps_budget_ends_where_the_last_one_does(tiny_model: MakeModel) -> None:
    config = tiny_model("llama", blocks=6).config
    request = SizeRequest("parts", reduction=0.2, replaced=3)
    budgets = [parts.Budget.of(config, request, step) for step in (1, 2, 3)]
    assert {budget.least for budget in budgets} == {budgets[-1].parameters}
    assert budgets[0].parameters > budgets[1].parameters > budgets[2].parameters


def test_scores_of_a_step_before_are_not_measured_again(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, model = (tiny_model("gpt2", blocks=4) for _ in range(2))
    first = Chooser(model, teacher, TEXTS, ALL)
    first.take(round(0.95 * count(teacher)), least=None)
    settled, _ = settle_blocks(
        model, {i: s for i, s in first._sizes.items() if s != sizes_of(teacher)[i]}
    )
    measured: list[int] = []
    real = Chooser._measure

    def counting(self: Chooser, walk: ReturningWalk, index: int, block: Any) -> float:
        measured.append(index)
        return real(self, walk, index, block)

    monkeypatch.setattr(Chooser, "_measure", counting)
    Chooser(settled, teacher, TEXTS, ALL, first.scores).take(count(settled) - 1, least=None)
    # The model as it is, and the cheapest candidates.
    assert 2 <= len(measured) <= 1 + NEAR


def test_no_candidate_with_a_lower_bound_goes_unmeasured(tiny_model: MakeModel) -> None:
    teacher, model = (tiny_model("gpt2", blocks=4) for _ in range(2))
    chooser = Chooser(model, teacher, TEXTS, ALL)
    options = chooser._options(None)
    chooser.scores = {change.key: 1.0 for change in options}
    chooser.scores["2/mlp"], chooser.scores["3/heads"] = -2.0, -1.0
    best, _, divergence = chooser._cheapest(options)
    tried = {key for key, value in chooser.scores.items() if value not in (1.0, -1.0, -2.0)}
    assert {"2/mlp", "3/heads", best.key} <= tried
    assert chooser.scores[best.key] == min(chooser.scores.values())
    assert divergence > 0


def test_a_budget_out_of_reach_is_one_line(tiny_model: MakeModel) -> None:
    teacher, model = (tiny_model("gpt2", blocks=3) for _ in range(2))
    with pytest.raises(UserError, match="ask for less reduction"):
        Chooser(model, teacher, TEXTS, ["heads"]).take(1, least=1)


def step_of(
    settings: StepSettings, model: PreTrainedModel, teacher: PreTrainedModel, **how: Any
) -> Any:
    most = round(0.9 * count(teacher))
    budget = parts.Budget(most, least=most, changes=ALL)
    return parts.substitute_parts(
        model, lambda: teacher, budget, text(60, 4), settings, known={}, step=1, seed=3, **how
    )


def test_a_resumed_step_makes_the_same_changes_to_the_same_bits(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = tiny_model("llama", blocks=4)
    settings = replace(STEP, block=None, validation=8, start=StartSettings("refit", 12))
    undisturbed = step_of(settings, tiny_model("llama", blocks=4), teacher)
    assert ChangedBlocks.of(undisturbed.model.config).narrow
    assert undisturbed.facts["parameters"] <= round(0.9 * count(teacher))
    with monkeypatch.context() as killed:
        killed.setattr(parts, "fine_tune", lambda *_, **__: pytest.fail("killed"))
        work = WorkFolder(tmp_path / "work", {"of": "this job"})
        with pytest.raises(pytest.fail.Exception, match="killed"):
            step_of(settings, tiny_model("llama", blocks=4), teacher, work=work)
    monkeypatch.setattr(Chooser, "take", lambda *_, **__: pytest.fail("measured again"))
    work = WorkFolder(tmp_path / "work", {"of": "this job"})
    resumed = step_of(settings, tiny_model("llama", blocks=4), teacher, work=work)
    assert resumed.facts == undisturbed.facts
    mine, theirs = resumed.model.state_dict(), undisturbed.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_becomes_smaller_is_fitted_to_the_model_before_and_not_to_its_teacher(
    family: str, tiny_model: MakeModel
) -> None:
    """What the model has learnt since is kept: here it has learnt to do without half its MLPs."""
    teacher, model = tiny_model(family, blocks=3), tiny_model(family, blocks=3, seed=5)
    adapter = family_of(model.config).adapter
    half = adapter.mlp_neurons(model.config) // 2
    with torch.no_grad():
        for block in family_of(model.config).blocks(model):
            written = block.get_parameter(f"{adapter.writers[1]}.weight")
            (written if family == "gpt2" else written.T)[half:] = 0
        ids = text(4, 3).long()
        before = model.eval()(ids).logits
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    chooser = Chooser(model, teacher, TEXTS, ["neurons"])
    heads = block_sizes(model.config, 0).heads
    chooser.repeat([{"block": i, "kind": "neurons", "heads": heads, "mlp": half} for i in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-3, atol=1e-4)
        as_it_was = chooser.before(ids).logits
    assert torch.equal(as_it_was, before)
    own = chooser.before.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in kept.items())
    shared = {id(parameter) for parameter in model.parameters()}
    head = next(iter(chooser.before.parameters()))
    assert id(head) in shared  # and takes no memory of its own
