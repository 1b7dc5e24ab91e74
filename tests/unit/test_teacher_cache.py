"""Recorded answers of a teacher: what they hold, the losses they give, and how a job goes on."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional
from transformers import PreTrainedModel

from iskd.baselines.tuning import tune
from iskd.data.corpus import step_rows
from iskd.errors import UserError
from iskd.models import CompactSizes
from iskd.runtime.signals import Interrupted
from iskd.runtime.workdir import WorkFolder
from iskd.settings import (
    LearningRates,
    ObjectiveSettings,
    RecordingSettings,
    StartSettings,
    StepSettings,
    TrainingSettings,
    TuningSettings,
)
from iskd.training import objectives, recording
from iskd.training.chunked import TeacherHead
from iskd.training.objectives import Mixture
from iskd.training.recording import record, recorded_rows, step_answers
from iskd.training.row_losses import TeacherDraws
from iskd.training.steps import substitute_block
from iskd.training.teacher_cache import TeacherCache
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

LENGTH = 9
EXACT = RecordingSettings("exact", "float32", None, None, None, 0)
SAMPLED = RecordingSettings("sampled", "float32", 2.0, 5, None, 0)
MIXED = ObjectiveSettings(next_token=0.3, kl=0.7, temperature=2.0)


def corpus(count: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator, dtype=torch.int32)


def recorded(
    model: PreTrainedModel,
    settings: RecordingSettings,
    folder: Path,
    *,
    text: torch.Tensor | None = None,
    seed: int = 1,
    **how: Any,
) -> dict[str, torch.Tensor]:
    """Record into a folder, and give what lies there, in the order of the rows."""
    folder.mkdir(parents=True)
    text = corpus() if text is None else text
    record(lambda: model, text, settings, **{"step": 1, "seed": seed, "out": folder, **how})
    parts = [load_file(file) for file in sorted(folder.glob("answers-*"))]
    names = parts[0] if parts else {}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def never() -> PreTrainedModel:
    raise AssertionError("the teacher should not be loaded")


def in_pieces(patch: pytest.MonkeyPatch) -> None:
    """Have files of three sequences and passes of two."""
    patch.setattr(recording, "FILE_TOKENS", 3 * LENGTH)
    patch.setattr(recording, "AT_ONCE", 2 * LENGTH)
    patch.setattr(recording, "ROWS", 3)


# --- what is recorded -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_exact_answers_are_the_teachers_logits(
    family: str, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pieces(monkeypatch)
    model = tiny_model(family, seed=2)
    found = recorded(model, EXACT, tmp_path / "exact")
    assert found["rows"].tolist() == list(range(10))
    cache = TeacherCache([tmp_path / "exact"], torch.tensor([7, 2, 9]))
    head = cache.target(torch.tensor([2, 0]), torch.device("cpu"))
    assert isinstance(head, TeacherHead)
    with torch.inference_mode():
        wanted = model(corpus()[[9, 7]].long()).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(head.logits(slice(None)), wanted)


def test_draws_follow_the_softened_distribution(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("gpt2", seed=2)
    draws = 4000
    found = recorded(model, replace(SAMPLED, draws=draws), tmp_path / "many", text=corpus(2))
    with torch.no_grad():
        wanted = (model(corpus(2).long()).logits[:, :-1] / 2).softmax(-1)
    assert found["tokens"].dtype == torch.uint16
    tokens = found["tokens"].long()
    share = torch.zeros_like(wanted).scatter_add_(-1, tokens, torch.ones_like(tokens).float())
    error = (wanted * (1 - wanted) / draws).sqrt()
    assert ((share / draws - wanted).abs() < 5 * error + 1 / draws).all()
    log_share = wanted.log().gather(-1, tokens).mean(-1)
    torch.testing.assert_close(found["log_share"], log_share, rtol=1e-5, atol=1e-5)


def test_what_is_drawn_depends_on_seed_and_sequence_alone(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", seed=2)
    whole = recorded(model, SAMPLED, tmp_path / "whole")
    assert torch.equal(whole["tokens"], recorded(model, SAMPLED, tmp_path / "again")["tokens"])
    other = recorded(model, SAMPLED, tmp_path / "other", seed=2)
    assert not torch.equal(whole["tokens"], other["tokens"])
    # Two sequences of the same text get numbers of their own.
    twice = corpus()[:1].repeat(2, 1)
    first, second = recorded(model, SAMPLED, tmp_path / "twice", text=twice)["tokens"]
    assert not torch.equal(first.int(), second.int())
    in_pieces(monkeypatch)
    pieces = recorded(model, SAMPLED, tmp_path / "pieces")
    assert len(list((tmp_path / "pieces").glob("answers-*"))) == 4
    assert torch.equal(whole["tokens"], pieces["tokens"])
    # Nor do the other sequences of a step matter.
    some = recorded(model, replace(SAMPLED, sequences=4), tmp_path / "some")
    assert torch.equal(whole["tokens"][some["rows"]].int(), some["tokens"].int())


def test_a_large_vocabulary_takes_wider_numbers(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recorded(tiny_model("gpt2"), SAMPLED, tmp_path / "small")
    monkeypatch.setattr(recording, "_SMALL_VOCABULARY", VOCABULARY - 1)
    large = recorded(tiny_model("gpt2"), SAMPLED, tmp_path / "large")
    assert large["tokens"].dtype == torch.int32
    assert torch.equal(small["tokens"].int(), large["tokens"])


def test_an_entry_without_probability_is_never_drawn() -> None:
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    where = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1 - 2**-53]], dtype=torch.float64)
    assert recording._tokens_at(shares, where).tolist() == [[1, 1, 3, 3, 3]]


def test_a_model_that_changes_its_logits_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    forward = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        answer = forward(*args, **kwargs)
        answer.logits = 3 * torch.tanh(answer.logits / 3)
        return answer

    model.forward = capped
    with pytest.raises(UserError, match="set teacher_cache to none"):
        recorded(model, EXACT, tmp_path / "capped")


def test_hidden_states_that_are_no_numbers_are_refused(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2")
    monkeypatch.setattr(recording._Recorder, "_check_head", lambda self: None)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("inf")
    with pytest.raises(UserError, match="no numbers"):
        recorded(model, EXACT, tmp_path / "broken")


# --- which sequences ------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [3, 7, 15, 23])
@pytest.mark.parametrize("validation", [0, 2])
def test_the_steps_together_record_what_they_train_on_and_each_sequence_once(
    sequences: int, validation: int
) -> None:
    settings = replace(EXACT, sequences=sequences, validation=validation)
    known = torch.empty(0, dtype=torch.int64)
    for step in range(1, 5):
        new = step_answers(corpus(), settings, step=step, seed=4, known=known)
        known = torch.cat([known, new])
        assert len(known.unique()) == len(known)
        trained = step_rows(10 - validation, sequences, seed=4, first=1, last=step)
        assert torch.equal(known.sort().values, trained.unique())


def test_where_a_step_takes_the_whole_corpus_the_first_one_records_all() -> None:
    known = torch.empty(0, dtype=torch.int64)
    rows = step_answers(corpus(), EXACT, step=1, seed=4, known=known)
    assert torch.equal(rows, torch.arange(10))


def test_a_step_that_adds_nothing_asks_nobody(tiny_model: MakeModel, tmp_path: Path) -> None:
    settings = replace(EXACT, sequences=10)
    recorded(tiny_model("gpt2"), settings, tmp_path / "1")
    (tmp_path / "2").mkdir()
    about = record(
        never, corpus(), settings, step=2, seed=1, out=tmp_path / "2", earlier=[tmp_path / "1"]
    )
    assert (about["sequences"], about["flops"], about["vocabulary"]) == (0, 0, VOCABULARY)
    both = [tmp_path / "1", tmp_path / "2"]
    assert torch.equal(recorded_rows(both), torch.arange(10))
    TeacherCache(both, torch.arange(10))


def test_a_sequence_without_an_answer_is_an_error(tiny_model: MakeModel, tmp_path: Path) -> None:
    found = recorded(tiny_model("gpt2"), replace(EXACT, sequences=4), tmp_path / "some")
    missing = next(row for row in range(10) if row not in found["rows"].tolist())
    with pytest.raises(RuntimeError, match=f"row {missing} of the corpus"):
        TeacherCache([tmp_path / "some"], torch.tensor([int(found["rows"][0]), missing]))


def test_only_the_batchs_sequences_are_read(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tiny_model("gpt2"), EXACT, tmp_path / "exact")
    cache = TeacherCache([tmp_path / "exact"], torch.arange(10))
    read: list[tuple[int, ...]] = []

    class Watched:
        def __init__(self, opened: Any) -> None:
            self.opened = opened

        def get_slice(self, name: str) -> Any:
            part = self.opened.get_slice(name)

            class Slice:
                def __getitem__(self, where: Any) -> torch.Tensor:
                    found: torch.Tensor = part[where]
                    read.append(tuple(found.shape))
                    return found

            return Slice()

    monkeypatch.setattr(cache, "_open", [Watched(one) for one in cache._open])
    cache.target(torch.tensor([4, 1]), torch.device("cpu"))
    assert read == [(1, LENGTH - 1, 32)] * 2


# --- losses ---------------------------------------------------------------------------------------


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def some(*index: int) -> dict[str, torch.Tensor]:
    places = torch.tensor(index)
    return {"input_ids": corpus()[places].long(), "index": places}


@pytest.fixture(params=[0, 1], ids=["chunked", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work the losses out in chunks, and from whole logits."""
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", VOCABULARY + request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_exact_answers_give_the_loss_of_asking(
    family: str,
    precision: Any,
    tiny_model: MakeModel,
    tmp_path: Path,
) -> None:
    student, teacher = tiny_model(family, seed=1), tiny_model(family, seed=2)
    settings = replace(EXACT, teacher_precision=precision)
    recorded(teacher, settings, tmp_path / "exact")
    asked = Mixture(MIXED, teacher.to(getattr(torch, precision)))(student, some(3, 8, 0))
    wanted = gradients(student, asked)
    loss = Mixture(MIXED, cache=TeacherCache([tmp_path / "exact"], torch.arange(10)))
    found = loss(student, some(3, 8, 0))
    near = 1e-5 if precision == "float32" else 1e-2
    torch.testing.assert_close(found, asked, rtol=near, atol=near / 10)
    torch.testing.assert_close(gradients(student, found), wanted, rtol=near, atol=near / 10)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_sampled_losses_and_gradients_are_right_on_average(
    heat: float,
    tiny_model: MakeModel,
    tmp_path: Path,
) -> None:
    """Means over many draws, in their standard errors from what asking the teacher gives."""
    student, teacher = tiny_model("gpt2", seed=1), tiny_model("gpt2", seed=2)
    objective = replace(MIXED, temperature=heat)
    settings = replace(SAMPLED, temperature=heat, draws=2)
    directions = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
        for name, p in student.named_parameters()
    }

    def numbers(loss: torch.Tensor) -> list[float]:
        slopes = gradients(student, loss)
        along = [(slopes[name] * directions[name]).sum().item() for name in sorted(slopes)]
        return [loss.item(), *along]

    exact = torch.tensor(numbers(Mixture(objective, teacher)(student, some(0, 1))))
    # Each sequence has draws of its own, the same text or not.
    times = 80
    recorded(teacher, settings, tmp_path / "drawn", text=corpus(2).repeat(times, 1))
    loss = Mixture(objective, cache=TeacherCache([tmp_path / "drawn"], torch.arange(2 * times)))
    found = torch.tensor(
        [
            numbers(loss(student, some(0, 1) | {"index": torch.tensor([2 * n, 2 * n + 1])}))
            for n in range(times)
        ]
    )
    error = found.std(0) / len(found) ** 0.5
    assert (error > 0).all()
    assert ((found.mean(0) - exact).abs() < 4 * error).all()
    # The loss would show a bias of a few hundredths of itself.
    assert error[0] < 0.02 * exact[0]


def test_draws_without_a_next_token_term(tiny_model: MakeModel, tmp_path: Path) -> None:
    student, teacher = tiny_model("gpt2", seed=1), tiny_model("gpt2", seed=2)
    recorded(teacher, SAMPLED, tmp_path / "drawn")
    cache = TeacherCache([tmp_path / "drawn"], torch.arange(10))
    drawn = cache.target(torch.tensor([4]), torch.device("cpu"))
    assert isinstance(drawn, TeacherDraws)
    logs = functional.log_softmax(student(some(4)["input_ids"]).logits[0, :-1] / 2, -1)
    wanted = 4 * (drawn.log_share.mean() - logs.gather(1, drawn.tokens).mean())
    loss = Mixture(replace(MIXED, next_token=0.0, kl=1.0), cache=cache)(student, some(4))
    torch.testing.assert_close(loss, wanted)


def test_a_cache_cannot_serve_hidden_states_or_another_vocabulary(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    recorded(tiny_model("gpt2"), EXACT, tmp_path / "exact")
    cache = TeacherCache([tmp_path / "exact"], torch.arange(10))
    with pytest.raises(UserError, match="hidden needs the teacher itself"):
        Mixture(replace(MIXED, hidden=0.1), cache=cache)
    student = tiny_model("gpt2")
    student.resize_token_embeddings(VOCABULARY + 3)
    with pytest.raises(UserError, match=r"has 64 entries, the teacher's 61"):
        Mixture(MIXED, cache=cache)(student, some(1))


# --- trainings ------------------------------------------------------------------------------------

TRAINING = TrainingSettings(
    epochs=2,
    sequences=6,
    batch_size=4,
    learning_rate=LearningRates(compact=1e-2, rest=1e-3),
    optimizer="adamw",
    weight_decay=0.0,
    beta2=0.95,
    schedule="linear",
    warmup=0.0,
    clip=1.0,
    precision="float32",
)
STEP = StepSettings(
    training=TRAINING,
    objective=MIXED,
    start=StartSettings("paper"),
    warm_start=0.0,
    validation=0,
    block=1,
    as_published=False,
)
SIZES = CompactSizes(width=16, heads=2, blocks=1, mlp=24, positions=POSITIONS)
Teacher = Callable[[], PreTrainedModel]


@pytest.fixture
def teacher(tiny_model: MakeModel) -> Teacher:
    return lambda: tiny_model("gpt2", seed=2)


def folders(teacher: Teacher, settings: RecordingSettings, steps: int, top: Path) -> list[Path]:
    """Record step after step."""
    made: list[Path] = []
    for step in range(1, steps + 1):
        place = top / f"step_{step}"
        recorded(teacher(), settings, place, step=step, seed=3, earlier=list(made))
        made.append(place)
    return made


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_step_with_exact_answers_is_the_step_that_asks(
    micro_batch: int | None, teacher: Teacher, tmp_path: Path
) -> None:
    settings = replace(STEP, training=replace(TRAINING, micro_batch=micro_batch))
    made = folders(teacher, replace(EXACT, sequences=6), 2, tmp_path)
    cached = replace(settings, objective=replace(MIXED, teacher_cache="exact"))
    how: dict[str, Any] = {"step": 2, "seed": 3}
    asked = substitute_block(teacher(), teacher, SIZES, corpus(), settings, **how)
    read = substitute_block(teacher(), never, SIZES, corpus(), cached, recorded=made, **how)
    for one, other in zip(asked.history, read.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["tokens"] == one["tokens"]
        # Of the teacher only its output projection is run.
        assert 0 < other["flops"] < one["flops"]
    for name, value in asked.model.state_dict().items():
        torch.testing.assert_close(read.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_draws_cost_no_more_than_no_teacher(teacher: Teacher, tmp_path: Path) -> None:
    made = folders(teacher, replace(SAMPLED, sequences=6), 1, tmp_path)
    cached = replace(STEP, objective=replace(MIXED, teacher_cache="sampled"))
    plain = replace(STEP, objective=ObjectiveSettings())
    how: dict[str, Any] = {"step": 1, "seed": 3}
    read = substitute_block(teacher(), never, SIZES, corpus(), cached, recorded=made, **how)
    alone = substitute_block(teacher(), never, SIZES, corpus(), plain, **how)
    assert read.history[-1]["flops"] == alone.history[-1]["flops"]
    assert read.history[-1]["loss"] != alone.history[-1]["loss"]


def test_after_a_warm_start_the_right_sequences_are_looked_up(
    teacher: Teacher, tmp_path: Path
) -> None:
    made = folders(teacher, replace(EXACT, sequences=6), 1, tmp_path)
    settings = replace(STEP, warm_start=0.34)
    cached = replace(settings, objective=replace(MIXED, teacher_cache="exact"))
    how: dict[str, Any] = {"step": 1, "seed": 3}
    asked = substitute_block(teacher(), teacher, SIZES, corpus(), settings, **how)
    read = substitute_block(teacher(), teacher, SIZES, corpus(), cached, recorded=made, **how)
    losses = [[row["loss"] for row in one.history] for one in (asked, read)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_baseline_reads_the_answers_of_all_its_references_steps(
    teacher: Teacher, tmp_path: Path, tiny_model: MakeModel
) -> None:
    made = folders(teacher, replace(EXACT, sequences=6, validation=1), 2, tmp_path)
    asked = TuningSettings(TRAINING, MIXED, validation=1)
    read = replace(asked, objective=replace(MIXED, teacher_cache="exact"))
    first, second = (tiny_model("gpt2", seed=1) for _ in range(2))
    one = tune(first, teacher, corpus(), asked, step=2, seed=3)
    other = tune(second, never, corpus(), read, step=2, seed=3, recorded=made)
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in one], rel=1e-5)


# --- a job that is killed -------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("settings", [EXACT, SAMPLED], ids=["exact", "sampled"])
@pytest.mark.parametrize("fault", ["none", "changed", "half", "of another run"])
def test_a_job_that_is_stopped_goes_on_to_the_same_bytes(
    settings: RecordingSettings,
    fault: str,
    tiny_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_pieces(monkeypatch)
    model = tiny_model("gpt2", seed=2)
    recorded(model, settings, tmp_path / "undisturbed")
    asked: list[int] = []
    real = recording._Recorder._hidden

    def stopped(self: Any, ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        if len(asked) == 6:  # two to try and count, two to the first file, the second one's second
            signal.raise_signal(signal.SIGTERM)
        return real(self, ids)

    monkeypatch.setattr(recording._Recorder, "_hidden", stopped)
    work = WorkFolder(tmp_path / "work", {"asked": "this"})
    with pytest.raises(Interrupted, match=r"SIGTERM .* first 6 sequences are kept"):
        recorded(model, settings, tmp_path / "killed", work=work)
    kept = sorted((tmp_path / "work").glob("*/answers-*.safetensors"))
    assert [file.name for file in kept] == [
        "answers-00001.safetensors",
        "answers-00002.safetensors",
    ]
    if fault == "changed":
        data = bytearray(kept[1].read_bytes())
        data[-1] ^= 1
        kept[1].write_bytes(bytes(data))
    if fault == "half":
        kept[1].with_suffix(".json").unlink()
    if fault == "of another run":
        note = json.loads(kept[1].with_suffix(".json").read_text())
        kept[1].with_suffix(".json").write_text(json.dumps(note | {"run": "0" * 64}))
    again = WorkFolder(tmp_path / "work", {"asked": "this"})
    recorded(model, settings, tmp_path / "again", work=again)
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "undisturbed")
    assert again.resumed_texts == [6 if fault == "none" else 3]


def test_another_job_does_not_take_over_what_is_kept(tiny_model: MakeModel, tmp_path: Path) -> None:
    recorded(tiny_model("gpt2"), EXACT, tmp_path / "one", work=WorkFolder(tmp_path / "w", {"a": 1}))
    other = WorkFolder(tmp_path / "w", {"a": 2})
    recorded(tiny_model("gpt2", seed=9), EXACT, tmp_path / "two", work=other)
    assert other.resumed_texts == []
    with safe_open(tmp_path / "two/answers-00001.safetensors", "pt") as two:
        found = two.get_tensor("hidden")
    assert not torch.equal(found, load_file(tmp_path / "one/answers-00001.safetensors")["hidden"])


# --- names ----------------------------------------------------------------------------------------


def test_every_setting_is_in_the_name() -> None:
    ways = [
        EXACT,
        replace(EXACT, teacher_precision="bfloat16"),
        replace(EXACT, sequences=40),
        replace(EXACT, sequences=40, validation=4),
        SAMPLED,
        replace(SAMPLED, draws=12),
        replace(SAMPLED, temperature=1.5),
        replace(SAMPLED, temperature=1e-5),
        replace(SAMPLED, sequences=40),
    ]
    names = [way.name for way in ways]
    assert len(set(names)) == len(ways)
    assert names[3] == "exact_float32_40_without_4"
    assert names[6] == "sampled_5_t1.5_float32_all"
