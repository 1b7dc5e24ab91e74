"""Blocks are compiled while a model is trained, few times, and nothing of it stays."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import family_of, replace_block
from iskd.provenance.ledger import STATE_SECONDS
from iskd.runtime.process import set_environment
from iskd.runtime.workdir import WorkFolder
from iskd.settings import ObjectiveSettings
from iskd.training import compiling, objectives
from iskd.training.compiling import compiled_blocks
from iskd.training.loop import fine_tune
from iskd.training.objectives import Mixture
from iskd.training.row_losses import _cross_entropy
from iskd.training.theseus import StochasticBlocks
from tests.unit.test_fine_tune import SETTINGS, SIZES, fresh, random_sequences

FAMILIES = ["gpt2", "llama"]
ALL_TERMS = ObjectiveSettings(next_token=0.5, kl=0.5, hidden=1.0, temperature=2.0)


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace graphs and gradients as ever, but run them operation by operation, for speed."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """Count what was compiled, and see to it that nothing was cut in parts."""
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def trained(family: str, *, compiled: bool, **how: Any) -> tuple[PreTrainedModel, list[Any]]:
    model, block = replace_block(fresh(family), 1, SIZES, "paper", seed=1)
    settings = replace(SETTINGS, compile=compiled, **how)
    history = fine_tune(
        model,
        random_sequences(8),
        settings,
        seed=3,
        compact=[block],
        objective=Mixture(ALL_TERMS, fresh(family)),
    )
    return model, history


@pytest.mark.parametrize(
    ("family", "checkpointing", "large"),
    [("gpt2", False, 2), ("llama", True, 2), ("gpt2", True, 10**6), ("llama", False, 10**6)],
)
def test_a_compiled_training_learns_the_same_by_all_terms(
    family: str, checkpointing: bool, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", large)
    how = {"checkpointing": checkpointing}
    (plain, curve), (fast, other) = (
        trained(family, compiled=compiled, **how) for compiled in (False, True)
    )
    # A block and a compact one of the student, a block of the teacher; in chunks, two terms.
    assert graphs() == (5 if large == 2 else 3)
    assert [row["flops"] for row in other] == [row["flops"] for row in curve]
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in curve], rel=1e-5)
    weights = fast.state_dict()
    assert list(weights) == list(plain.state_dict())
    for name, weight in plain.state_dict().items():
        assert (weight - weights[name]).abs().max() < 2e-4, name


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_one_shape_are_compiled_once(family: str) -> None:
    model = fresh(family)
    blocks = family_of(model.config).blocks(model)
    assert len(blocks) == 2
    with compiled_blocks([model, None]):
        model(input_ids=random_sequences(2).long(), use_cache=False).logits.sum().backward()
        assert graphs() == 1
        # Every size has a graph of its own, whatever came before.
        model(input_ids=random_sequences(3).long(), use_cache=False).logits.sum().backward()
        assert graphs() == 2


def test_all_sizes_are_compiled_however_many() -> None:
    model = fresh()
    with compiled_blocks([model]):
        for count in range(1, 11):
            model(input_ids=random_sequences(count).long(), use_cache=False)
    assert graphs() == 10


inductor = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None, reason="compiling takes g++ here"),
    ],
)


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
def test_a_killed_run_compiles_anew_and_ends_with_the_same_bits(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", 2)
    monkeypatch.setenv(STATE_SECONDS, "0")

    def train(folder: str, killed: int | None = None, *, compiled: bool = True) -> Any:
        # As in a process of its own, on a machine that has compiled nothing yet.
        torch.compiler.reset()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"{folder}-{killed}"))
        model, work = fresh(dropout=0.1), WorkFolder(tmp_path / folder, {"rule": "train"})

        def on_update(update: int, total: int) -> None:
            if update == killed:
                raise ZeroDivisionError

        history = fine_tune(
            model,
            random_sequences(16),
            replace(SETTINGS, compile=compiled),
            seed=5,
            objective=Mixture(replace(ALL_TERMS, hidden=0.0), fresh()),
            on_update=on_update,
            work=work,
        )
        return model.state_dict(), history, work.resumed

    wanted, curve, _ = train("undisturbed")
    with pytest.raises(ZeroDivisionError):
        train("killed", 2)
    found, other, resumed = train("killed")
    assert resumed == [2]
    assert other == curve
    assert all(torch.equal(weight, found[name]) for name, weight in wanted.items())
    # Inductor draws other numbers for dropout.
    plain = train("plain", compiled=False)[1]
    losses, eager = ([row["loss"] for row in rows] for rows in (curve, plain))
    assert losses == pytest.approx(eager, rel=1e-5 if backend == "aot_eager" else 0.02)


def test_nothing_of_it_stays_behind(tmp_path: Path) -> None:
    folders = []
    for compiled in (False, True):
        model, _ = trained("gpt2", compiled=compiled)
        hooks = [list(module._forward_hooks) for module in model.modules()]
        assert any(hooks)  # the library's, for output_attentions
        assert not any("forward" in module.__dict__ for module in model.modules())
        model.set_attn_implementation("eager")  # the one that tells its weights
        out = model(input_ids=random_sequences(2).long(), output_attentions=True)
        assert len(out.attentions) == 3  # two of them in the compact block
        model.save_pretrained(tmp_path / str(compiled))
        folders.append(tmp_path / str(compiled))
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    assert (folders[0] / "config.json").read_bytes() == (folders[1] / "config.json").read_bytes()
    assert _cross_entropy.chosen is _cross_entropy.function


def test_nor_does_it_where_a_training_fails() -> None:
    model = fresh()
    context = compiled_blocks([model])
    context.__enter__()
    assert _cross_entropy.chosen is not _cross_entropy.function
    assert not context.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert _cross_entropy.chosen is _cross_entropy.function


def test_a_block_whose_forward_is_diverted_is_refused() -> None:
    teacher = fresh()
    model, _ = replace_block(teacher, 1, SIZES, "paper", seed=1)
    originals = {1: family_of(teacher.config).blocks(teacher)[1]}
    with (
        StochasticBlocks(model, originals, first=0.5, curriculum=0.5, seed=1),
        pytest.raises(ValueError, match="diverted"),
        compiled_blocks([model]),
    ):
        pass


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"C\+\+ compiler .* leave compile out"):
        trained("gpt2", compiled=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs a C compiler beside the GPU"), compiled_blocks([]):
        pass


def test_compiled_code_lies_where_all_jobs_of_a_folder_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(folder: Path, **given: str) -> str | None:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        environment = dict(given)
        monkeypatch.setattr("os.environ", environment)
        set_environment(3, network=False)
        assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "3"
        return environment.get("TORCHINDUCTOR_CACHE_DIR")

    assert place(tmp_path / "a") == str(tmp_path / "a/.snakemake/inductor")
    assert place(tmp_path / "a", TORCHINDUCTOR_CACHE_DIR="/elsewhere") == "/elsewhere"
    # The C++ compiler would be handed the path in two pieces.
    assert place(tmp_path / "a b") is None
