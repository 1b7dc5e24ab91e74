"""Commands that need packages beside the lock's name those that are missing, and write nothing."""

from pathlib import Path

import pytest

import iskd.serving.commands
from iskd.cli import main
from iskd.data.corpus import train_tokenizer
from iskd.models.folder import save_model
from tests.unit.conftest import POSITIONS, MakeModel

TEXTS = ["The hen saw the fox by the old red barn.", "A fox may wait for a hen."] * 20


@pytest.mark.parametrize(
    ("command", "present", "missing"),
    [
        ("export-onnx", ("onnx",), "onnxscript"),
        ("export-onnx", (), "onnx onnxscript"),
        ("quantise", (), "torchao"),
    ],
)
def test_a_missing_package_is_named_in_one_line(
    command: str,
    present: tuple[str, ...],
    missing: str,
    *,
    tiny_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300, length=POSITIONS)
    save_model(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, tmp_path / "model")
    monkeypatch.setattr(iskd.serving.commands, "_is_there", lambda package: package in present)
    assert main([command, str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    said = f"iskd {command}: not installed: {missing}; pip install {missing}\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "out").exists()
