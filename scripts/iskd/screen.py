"""The last lines of a terminal, which stay where they are while other text scrolls above them."""

import atexit
import os
import select
import sys
import threading
from collections.abc import Callable

# Seconds between two looks at whether the lines have changed.
_PACE = 0.5
_CHUNK = 65536


class Screen:
    """Keep some lines at the bottom of a terminal.

    Whatever this process and those it starts write to standard error goes through a pipe and is
    printed above the lines, so that none of it is torn or lost, and the programs started here do
    not take it for a terminal: their own bars stay away.

    Args:
        lines: gives the lines for a terminal of so many columns. It is called in a thread of its
            own and must not wait for one that writes to standard error.
        stderr: the descriptor of standard error, which is a terminal.
    """

    def __init__(self, lines: Callable[[int], list[str]], stderr: int = 2) -> None:
        self._lines = lines
        self._stderr = stderr
        self._terminal = self._pipe = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._drawn: list[str] = []
        self._rest = b""

    def start(self) -> None:
        """Take over the terminal, until :meth:`stop` or this process's end."""
        sys.stderr.flush()
        self._terminal = os.dup(self._stderr)
        self._pipe, end = os.pipe()
        os.dup2(end, self._stderr)
        os.close(end)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Give the terminal back, without the lines; a second call does nothing."""
        if self._stop.is_set() or self._terminal < 0:
            return
        sys.stderr.flush()
        os.dup2(self._terminal, self._stderr)
        self._stop.set()
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # it may wait for a terminal that has been halted
            os.close(self._terminal)
            os.close(self._pipe)

    def _run(self) -> None:
        open_ended = True
        while open_ended:
            stopping = self._stop.is_set()
            ready, _, _ = select.select([self._pipe], [], [], 0 if stopping else _PACE)
            text = os.read(self._pipe, _CHUNK) if ready else b""
            # A process that outlives this one may hold the pipe open for ever.
            open_ended = bool(text) if ready else not stopping
            self._draw(text)
        self._write(self._erasing() + self._rest)

    def _draw(self, text: bytes) -> None:
        """Print text above the lines, as far as its own lines are complete."""
        complete, newline, rest = (self._rest + text).rpartition(b"\n")
        self._rest = rest
        lines = [] if self._stop.is_set() else self._lines(self._columns())
        if newline or lines != self._drawn:
            erasing = self._erasing()
            self._drawn = lines
            self._write(erasing + complete + newline + "\n".join(lines).encode())

    def _erasing(self) -> bytes:
        """Move the cursor to the first of the lines and delete what follows."""
        if not self._drawn:
            return b""
        up = f"\x1b[{len(self._drawn) - 1}A" if len(self._drawn) > 1 else ""
        return f"\r{up}\x1b[J".encode()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._terminal).columns or 80
        except OSError:
            return 80

    def _write(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._terminal, text) :]
        except OSError:
            return  # the terminal has gone; who writes into the pipe must not wait for it


def is_terminal(stderr: int = 2) -> bool:
    """Tell whether standard error is a terminal whose cursor can be moved."""
    return os.isatty(stderr) and os.environ.get("TERM", "dumb") != "dumb"
