"""What an evaluation has scored: one that is killed goes on from there, to the same bytes.

lm-eval's own cache does not give that: it keeps pickles in sqlite, knows a request by its text
alone, and puts those that are left into new batches, which changes the last digits of their sums.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from iskd.progress import bar
from iskd.provenance.artifact import flush
from iskd.provenance.machine import bits_depend_on
from iskd.runtime.signals import Interrupted, StopRequest
from iskd.runtime.workdir import WorkFolder

log = logging.getLogger("iskd.evaluation")

ANSWERS = "answers.jsonl"
CHUNK = 8
"""Batches whose answers are kept together: a kill costs no more than these."""
_REPORTS = 10
"""How often progress is logged in one call."""

Batch = TypeVar("Batch", bound=Sized)


class _Line(NamedTuple):
    key: dict[str, Any]
    answers: list[Any]
    digest: str
    end: int  # offset in the file of the byte behind it


class Answers:
    """The answers of one evaluation on disk, a line for each chunk, in the order of computation.

    A line's digest covers the run and all lines before it. So the lines that were written by this
    run, whole and in order, are distinguished from the rest, which begins with the first
    that is not; the rest is cut off. Floats come back as the same bits.

    Args:
        path: the file; it need not exist.
        run: digest of all that the answers depend on.
        check: raises an error where another job may write into the file by now.
        note: called whenever answers are kept.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        check: Callable[[], None] | None = None,
        note: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.check = check
        self.note = note
        self._digest, self._end = run, 0
        data = path.read_bytes() if path.exists() else b""
        self._lines = list(_trusted(data, run))
        end = self._lines[-1].end if self._lines else 0
        if end < len(data):
            self._cut(end, "what follows is not as it was written")

    def next(self, key: dict[str, Any], count: int) -> list[Any] | None:
        """Give the answers to a chunk, if the next line has them.

        Args:
            key: which chunk of which requests it is.
            count: how many answers it must have.
        """
        if not self._lines:
            return None
        line = self._lines[0]
        if line.key != key or len(line.answers) != count:
            self._lines.clear()
            self._cut(self._end, "what follows answers other requests")
            return None
        del self._lines[0]
        self._digest, self._end = line.digest, line.end
        return line.answers

    def add(self, key: dict[str, Any], answers: list[Any]) -> None:
        """Keep the answers to a chunk: they are on disk when this returns.

        Args:
            key: see :meth:`next`, which has just found none.
            answers: one per request, in JSON's types.

        Raises:
            UserError: another job may work here.
        """
        if self.check:
            self.check()
        digest = _chained(self._digest, key, answers)
        line = json.dumps({"answers": answers, "digest": digest, "key": key}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        try:
            with self.path.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, self._end)
            raise
        if new:
            flush(self.path.parent)
        self._digest, self._end = digest, self._end + len(line)
        self.note()

    def _cut(self, end: int, why: str) -> None:
        log.warning("%s is used up to byte %d: %s", self.path.name, end, why)
        os.truncate(self.path, end)
        flush(self.path)


def _trusted(data: bytes, run: str) -> Iterator[_Line]:
    """Read the lines that this run has written, as far as they are whole and in order."""
    digest, end = run, 0
    for text in data.split(b"\n")[:-1]:  # the last piece lacks its end, or is empty
        try:
            line = json.loads(text)
            key, answers = line["key"], line["answers"]
            digest = _chained(digest, key, answers)
            if line["digest"] != digest or not isinstance(answers, list):
                return
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        end += len(text) + 1
        yield _Line(key, answers, digest, end)


def _chained(before: str, key: Any, answers: Any) -> str:
    # Not canonical_json, which refuses the infinities that a broken model may answer with.
    content = json.dumps([before, key, answers], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Scoring:
    """One evaluation: skips what was scored before, says how far it is, stops when asked to.

    Args:
        answers: where answers are kept; None to keep none.
        stop: whether somebody wants this process to end.
        resumed: gets, for each call that went on, the number of texts that were scored before.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        stop: StopRequest | None = None,
        resumed: list[int] | None = None,
    ) -> None:
        self._answers = answers
        self._stop = StopRequest() if stop is None else stop
        self._resumed = [] if resumed is None else resumed
        self._calls = 0

    def __call__(
        self, batches: Sequence[Batch], score: Callable[[Batch], list[Any]], requests: bytes
    ) -> list[Any]:
        """Score texts batch by batch; each forward pass is the same whether resumed or not.

        Args:
            batches: the texts, as many as one forward pass takes in each.
            score: gives one answer per text of a batch, in JSON's types.
            requests: the requests of this call, as bytes.

        Returns:
            the answers in the order of the batches' texts

        Raises:
            Interrupted: the process was asked to stop; whole chunks are kept.
            UserError: another job may work here.
        """
        self._calls += 1
        digest = hashlib.sha256(requests).hexdigest()
        total = sum(len(batch) for batch in batches)
        answers: list[Any] = []
        before = None
        with bar(total, "scoring", unit="text") as shown:
            for start in range(0, len(batches), CHUNK):
                chunk = batches[start : start + CHUNK]
                key = {"call": self._calls, "chunk": start // CHUNK, "requests": digest}
                known = self._known(key, sum(len(batch) for batch in chunk))
                if known is None:
                    if before is None:
                        before = self._went_on(len(answers), total)
                    known = self._scored(chunk, score, len(answers), total)
                    if self._answers:
                        self._answers.add(key, known)
                answers += known
                shown.update(len(known))
        if before is None:
            self._went_on(len(answers), total)
        return answers

    def _known(self, key: dict[str, Any], count: int) -> list[Any] | None:
        return self._answers.next(key, count) if self._answers else None

    def _went_on(self, done: int, total: int) -> int:
        if done:
            log.info("%d of %d texts were scored before", done, total)
            self._resumed.append(done)
        return done

    def _scored(
        self, chunk: Sequence[Batch], score: Callable[[Batch], list[Any]], done: int, total: int
    ) -> list[Any]:
        answers: list[Any] = []
        for batch in chunk:
            if self._stop:
                raise Interrupted(
                    f"{self._stop.signal_name} while texts are scored; "
                    f"the first {done} of {total} are kept"
                )
            before = done + len(answers)
            answers += score(batch)
            now = done + len(answers)
            if before * _REPORTS // total != now * _REPORTS // total:
                log.info("%d of %d texts scored", now, total)
        return answers


@contextmanager
def scoring(work: WorkFolder | None, device: torch.device) -> Iterator[Scoring]:
    """Open an evaluation, which may have been begun before; it handles signals meanwhile.

    Args:
        work: where its answers are kept, if it is to survive being killed. The evaluations of one
            job are distinguished by their order.
        device: where the model is.
    """
    if work is None:
        yield Scoring()
        return
    work.evaluations += 1
    run = work.run(**bits_depend_on(device), evaluation=work.evaluations)
    with StopRequest().handling_signals() as stop:
        answers = Answers(run.path / ANSWERS, run.digest, run.check, run.note)
        yield Scoring(answers, stop, work.resumed_texts)
