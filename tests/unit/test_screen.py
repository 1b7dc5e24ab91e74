"""The lines that stay at the bottom of a terminal, on a pseudo-terminal."""

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iskd.screen import Screen, is_terminal


class Terminal:
    """A terminal whose other side is read: what it shows, without what was deleted."""

    def __init__(self) -> None:
        self.side, self.stderr = pty.openpty()
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.written += os.read(self.side, 65536)
            except OSError:
                return  # closed

    def close(self) -> str:
        """Close it, and give all that was written."""
        os.close(self.stderr)
        self._reader.join(timeout=10)
        os.close(self.side)
        return self.written.decode().replace("\r\n", "\n")


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def shown(written: str) -> str:
    """Give what stays on the screen of what is written, as a terminal would."""
    lines, row = [""], 0
    while written:
        if written.startswith("\x1b["):
            end = next(i for i, char in enumerate(written) if char.isalpha())
            number, what = written[2:end] or "1", written[end]
            if what == "A":
                row -= int(number)
            else:  # J: delete from here on
                lines = [*lines[:row], ""]
            written = written[end + 1 :]
        elif written[0] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
            written = written[1:]
        elif written[0] == "\r":
            written = written[1:]
        else:
            lines[row] += written[0]
            written = written[1:]
    return "\n".join(lines)


def test_what_programs_write_is_printed_above_the_lines(terminal: Terminal) -> None:
    os.write(terminal.stderr, b"before\n")
    drawn = threading.Event()

    def lines(columns: int) -> list[str]:
        drawn.set()
        return [f"study of {columns} columns", "  a job"]

    screen = Screen(lines, terminal.stderr)
    screen.start()
    # It is no terminal for the programs that are started: none draws a bar.
    assert not is_terminal(terminal.stderr)
    for number in range(3):
        subprocess.run(
            [sys.executable, "-c", f"import sys; print('line {number}', file=sys.stderr)"],
            stderr=terminal.stderr,
            check=True,
        )
    assert drawn.wait(10)
    os.write(terminal.stderr, b"the end of a line without newline")
    screen.stop()
    screen.stop()
    assert os.isatty(terminal.stderr)
    os.write(terminal.stderr, b"; after\n")
    written = terminal.close()
    assert "study of 80 columns\n  a job" in written
    assert shown(written) == (
        "before\nline 0\nline 1\nline 2\nthe end of a line without newline; after\n"
    )


def test_a_program_that_goes_on_does_not_keep_the_screen(terminal: Terminal) -> None:
    screen = Screen(lambda _: ["study"], terminal.stderr)
    screen.start()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stderr=terminal.stderr,
    ) as program:
        screen.stop()
        assert os.isatty(terminal.stderr)
        program.communicate()
    assert shown(terminal.close()) == ""


def test_a_terminal_that_goes_does_not_stop_the_programs(terminal: Terminal) -> None:
    screen = Screen(lambda _: ["study"], terminal.stderr)
    screen.start()
    os.close(terminal.side)
    # More than a pipe holds: it is read although nobody sees it.
    for _ in range(64):
        os.write(terminal.stderr, b"x" * 4095 + b"\n")
    screen.stop()


def test_a_file_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with (tmp_path / "out").open("w") as stream:
        assert not is_terminal(stream.fileno())
    side, stderr = pty.openpty()
    assert is_terminal(stderr)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(stderr)
    os.close(side)
    os.close(stderr)
