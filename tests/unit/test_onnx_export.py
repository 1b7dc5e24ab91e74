"""Models as ONNX graphs, compared by onnxruntime where it is installed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import iskd.serving.commands
from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.models import CompactSizes, NarrowSizes
from iskd.models.folder import save_model
from tests.unit.conftest import POSITIONS, SHARE, MakeModel

TEXTS = ["The hen saw the fox by the old red barn.", "A fox may wait for a hen."] * 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocabulary=300, length=POSITIONS)


# Learned positions, and rotary ones with a window that slides. An export takes 8 seconds.
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_onnxruntime_gives_the_same_text(
    family: str,
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    share = SHARE.get(family, 1)
    model = tiny_model(
        family,
        compact={0: CompactSizes(8, 1, 2, 12, POSITIONS)},
        narrow={1: NarrowSizes(share, 17), 2: NarrowSizes(0, 9), 3: NarrowSizes(0, 0)},
        blocks=4,
        vocab_size=len(tokenizer),
    )
    save_model(model, tokenizer, tmp_path / "model")
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    written, compared = capsys.readouterr().out.splitlines()
    assert written.endswith("model.onnx: 4 blocks, float32, no KV cache")
    assert compared.startswith("onnxruntime: 3 of 3 greedy texts")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        *("model.onnx", "model.onnx.data", "config.json", "tokenizer.json"),
    }
    # Another batch and length than the export was made with, the second text padded on its left.
    from transformers.exporters import ExportedModel

    own = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(1, 40).reshape(3, 13)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    read = ExportedModel.from_pretrained(tmp_path / "out", device="cpu")
    with torch.no_grad():
        expected = own(input_ids=ids, attention_mask=mask).logits
    found = torch.as_tensor(read(input_ids=ids, attention_mask=mask).logits)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-3, rtol=1e-3)


def test_other_texts_are_a_finding(
    tiny_model: MakeModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model("llama", vocab_size=len(tokenizer))
    save_model(model, tokenizer, tmp_path / "model")
    other = tiny_model("llama", vocab_size=len(tokenizer), seed=1)
    monkeypatch.setattr(iskd.serving.commands, "_is_there", lambda package: True)
    monkeypatch.setattr(
        "iskd.serving.onnx_export.export_onnx", lambda model, folder, where: folder / "model.onnx"
    )
    monkeypatch.setattr(
        "iskd.serving.onnx_export.onnx_logits",
        lambda graph: lambda text: other(torch.tensor([text])).logits[0, -1].numpy(),
    )
    assert main(["export-onnx", str(tmp_path / "model"), str(tmp_path / "out")]) == 1
    assert "onnxruntime: 0 of 3 greedy texts" in capsys.readouterr().out
