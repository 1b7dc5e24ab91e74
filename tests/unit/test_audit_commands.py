"""What people type wrongly to the command `iskd` is answered in one line."""

from pathlib import Path

import pytest

from iskd.cli import main


@pytest.mark.parametrize(
    "call",
    [
        ["verify", "{0}/typo"],
        ["diff", "{0}/typo", "{0}"],
        ["trace", "file.csv", "--study", "{0}/typo"],
    ],
)
def test_a_folder_that_is_not_there(
    call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(tmp_path) for part in call]) == 2
    message = capsys.readouterr().err
    assert "typo: there is no such folder; name one as results/<study>" in message
    assert message.count("\n") == 1
