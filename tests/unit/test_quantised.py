"""Models with 8-bit integers as weights: what is quantised, what the folder gives again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.models import CompactSizes, NarrowSizes
from iskd.models.folder import load_model, save_model
from iskd.paper.figures.canvas import save_figure
from tests.benchmarks.quantised import COLUMNS, loss_of, quantised_figure
from tests.unit.conftest import POSITIONS, SHARE, MakeModel

TEXTS = ["The hen saw the fox by the old red barn.", "A fox may wait for a hen."] * 20
IDS = torch.arange(1, 25).reshape(2, 12)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=300, length=POSITIONS)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("gpt2", torch.float32), ("llama", torch.bfloat16), ("gpt_neox", torch.float32)],
)
def test_a_quantised_folder_is_read_again(
    family: str,
    dtype: torch.dtype,
    *,
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    share = SHARE.get(family, 1)
    model = tiny_model(
        family,
        compact={0: CompactSizes(32, 2, 2, 64, POSITIONS)},
        narrow={1: NarrowSizes(share, 17), 2: NarrowSizes(0, 9), 3: NarrowSizes(0, 0)},
        blocks=5,
        width=64,
        vocab_size=len(tokenizer),
    ).to(dtype)
    save_model(model, tokenizer, tmp_path / "model")
    assert main(["quantise", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    written, compared = capsys.readouterr().out.splitlines()
    assert str(dtype).removeprefix("torch.") in written
    assert "greedy texts" in compared
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    integers = {name for name, value in tensors.items() if value.dtype == torch.int8}
    # The two projections of a compact block, at least; of GPT-2 nothing else is a Linear.
    places = {name.rsplit(".", 1)[0].split(".", 2)[2] for name in integers}
    assert {"0.down", "0.up"} <= places
    assert (len(places) > 2) == (family != "gpt2")
    # Scales are always float32, all else is in the model's own format.
    rest = {name: value.dtype for name, value in tensors.items() if name not in integers}
    assert {kind for name, kind in rest.items() if not name.endswith("scale")} == {dtype}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(read) is type(model)
    assert list((tmp_path / "out").glob("iskd_*.py"))
    with torch.no_grad():
        found, own = read(IDS).logits, model(IDS).logits
    # A row's largest number is 127 steps away from 0.
    assert 0 < (found - own).abs().max() < 0.25 * own.abs().max()
    capsys.readouterr()
    # It is not trained, pruned or quantised again.
    assert main(["quantise", str(tmp_path / "out"), str(tmp_path / "again")]) == 2
    assert "are quantised (torchao)" in capsys.readouterr().err


def test_what_cannot_be_quantised_is_said_in_one_line(
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    save_model(tiny_model("gpt2", vocab_size=len(tokenizer)), tokenizer, tmp_path / "model")
    assert main(["quantise", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert "none of its projections is a Linear" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["quantise", str(tmp_path / "model"), str(tmp_path / "model")]) == 2
    assert "the model itself lies there; name another folder" in capsys.readouterr().err
    assert load_model(tmp_path / "model").config.model_type == "gpt2"


def test_the_figure_sets_loss_against_bytes(tmp_path: Path) -> None:
    numbers = [
        ("teacher", "own", 540.0, 2.9, 2.8, 3.0),
        ("teacher", "int8", 220.0, 2.95, 2.85, 3.05),
        ("smaller", "own", 380.0, 3.1, 3.0, 3.2),
        ("smaller", "int8", 180.0, 3.12, 3.02, 3.22),
    ]
    frame = pd.DataFrame([(*row, "items") for row in numbers], columns=COLUMNS)
    figure = quantised_figure(frame)
    (axes,) = figure.axes
    drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [[220.0, 2.95], [540.0, 2.9]] in drawn
    assert [[180.0, 3.12], [380.0, 3.1]] in drawn
    assert [[180.0, 3.12]] in drawn
    assert axes.get_xlim()[0] == 0
    save_figure(figure, frame, tmp_path / "small")
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".pdf", ".png", ".svg"}


def test_a_loss_is_the_mean_over_tokens() -> None:
    scores = [
        {"source": "a", "tokens": 10, "loss": 2.0},
        {"source": "b", "tokens": 30, "loss": 3.0},
        {"source": "c", "tokens": 10, "loss": 2.0},
    ]
    value, low, high = loss_of(scores)
    assert value == pytest.approx(2.6)
    assert low < value < high
