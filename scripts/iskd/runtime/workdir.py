"""The work folder of an artifact, which keeps what its job goes on from when it was killed.

It lies beside the artifact; Snakemake does not know of it and therefore does not delete it. Inside,
each run has a folder of its own, named by a digest of all that defines it, with the states of its
training. A state counts once its manifest lies in it, which is written last; one that does not
verify is moved aside and never used.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, file_digest, flush, write_text
from iskd.provenance.ledger import PREFIX, STATE_SECONDS, Ledger, Spent
from iskd.provenance.statement import canonical_json
from iskd.runtime.locks import ask_to_stop, read_holder, take_lock
from iskd.runtime.signals import Interrupted

log = logging.getLogger("iskd.runtime")

_KEPT = 2
_LOCK = "lock"


def state_seconds() -> float:
    """Read how much time passes between two states.

    Raises:
        UserError: the environment variable does not hold a number.
    """
    given = os.environ.get(STATE_SECONDS, "600")
    try:
        return float(given)
    except ValueError:
        raise UserError(f"{STATE_SECONDS}: {given!r} is no number of seconds") from None


class WorkFolder:
    """The states of the runs that make one artifact.

    Args:
        path: the work folder, beside the artifact.
        request: the dict that defines the artifact, as its manifest will say.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.path = path
        self.request = request
        # Where a killed job went on: trainings, by optimiser step, and calls of evaluations.
        self.resumed: list[int] = []
        self.resumed_texts: list[int] = []
        self.evaluations = 0
        # What this attempt has taken so far, if somebody counts.
        self.spent: Callable[[], Spent] | None = None
        self._ledger: Ledger | None = None
        self._lock: int | None = None

    @classmethod
    def beside(cls, artifact: Path, request: dict[str, Any]) -> "WorkFolder":
        """Give the work folder of an artifact's folder.

        Args:
            artifact: the artifact's folder.
            request: the dict that defines the artifact.
        """
        return cls(artifact.with_name(f".{artifact.name}.work"), request)

    def run(self, **conditions: Any) -> "RunStates":
        """Open the states of one run.

        Args:
            conditions: what else its bits depend on, such as device and threads.
        """
        digest = hashlib.sha256(canonical_json({"asked": self.request, "how": conditions}).encode())
        check = None if self._lock is None else self.check_held
        return RunStates(self.path, digest.hexdigest(), check, self._note)

    def remember(
        self, name: str, work_out: Callable[[], Any], *, keep: bool = True, **conditions: Any
    ) -> Any:
        """Give what takes long to work out; a further attempt at the artifact reads it.

        Args:
            name: of the file in the work folder.
            work_out: gives it, as JSON's types.
            keep: whether this process writes the file.
            conditions: what else its bits depend on, such as device and threads.
        """
        file = self.path / f"{name}.json"
        key = json.loads(canonical_json({"asked": self.request, "how": conditions}))
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return kept["value"]
        value = work_out()
        if keep:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, canonical_json({"key": key, "value": value}))
        return value

    def open_ledger(self, spent: Callable[[], Spent]) -> None:
        """Have what this attempt takes counted; those before it have ended."""
        self._ledger = Ledger(self.path, self.request, spent)

    def _note(self) -> None:
        if self._ledger is not None:
            self._ledger.note()

    def in_all(self, last: Spent) -> Spent:
        """Add what earlier attempts at the artifact have taken to what the last one has."""
        return last if self._ledger is None else self._ledger.in_all(last)

    def check_held(self) -> None:
        """Check that no other job can have taken the artifact over.

        Raises:
            UserError: the folder with our lock was removed.
        """
        if not self._held():
            raise UserError(
                f"{self.path.as_posix()} was removed while the job ran, and its lock with it: "
                "another job may make this artifact now, so nothing is published; leave the hidden "
                "folders below results/ alone while snakemake runs, then call it again"
            )

    def _held(self) -> bool:
        """Tell whether the lock in the folder is the one that this process holds."""
        if self._lock is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._lock), (self.path / _LOCK).stat())
        except OSError:
            return False

    def _tidy(self) -> None:
        """Delete the states that were never completed: on a full disk they only take space."""
        for state in self.path.glob("*/checkpoint-*"):
            if not (state / MANIFEST).exists():
                shutil.rmtree(state, ignore_errors=True)

    def _holds_something(self) -> bool:
        """Tell whether there is anything for a further attempt to go on from."""
        names = {entry.name for entry in self.path.glob("*")}
        return any(name != _LOCK and not name.startswith(PREFIX) for name in names)

    def remove(self) -> None:
        """Delete the folder: the artifact is published."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self, patience: float = 600.0) -> Iterator[None]:
        """Keep every other process off the artifact as long as this is open.

        Only one Snakemake runs a study, so whoever holds the lock is a job that its Snakemake has
        lost: preempted and still saving its state, or running on since Snakemake was killed. It is
        asked to stop and waited for; its state is what we go on from.

        Args:
            patience: seconds to wait.

        Raises:
            Interrupted: it is still held after that.
        """
        until = time.monotonic() + patience
        announced = False
        self.path.mkdir(parents=True, exist_ok=True)
        while (descriptor := take_lock(self.path / _LOCK)) is None:
            if time.monotonic() > until:
                raise Interrupted(f"another job still works on {self.path.name}, whose lock it has")
            if not announced:
                holder = read_holder(self.path / _LOCK)
                name = ask_to_stop(holder) if holder else None
                log.info(
                    "another job works on this artifact; waiting for its end%s",
                    f" ({name} is asked to save its state and stop)" if name else "",
                )
                announced = True
            time.sleep(min(1.0, patience / 10))
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = descriptor
        if self.spent is not None:
            self.open_ledger(self.spent)
        try:
            yield
        finally:
            if self._held():
                self._tidy()
                if self._holds_something():
                    self._note()
                else:
                    self.remove()
            self._lock, self._ledger = None, None
            os.close(descriptor)


def sweep(results: Path) -> None:
    """Remove what jobs left that were killed when they had just published their artifact.

    Nothing else would: an artifact that is there is not made again. A job that still runs keeps
    its folder, and so do the states of an artifact that is not there.
    """
    for work in sorted(results.rglob(".*.work")):
        name = work.name.removeprefix(".").removesuffix(".work")
        if not (work.with_name(name) / MANIFEST).exists():
            continue
        try:
            descriptor = take_lock(work / _LOCK)
        except OSError:  # a job that has removed it itself in the meantime
            continue
        if descriptor is None:
            continue
        shutil.rmtree(work.with_name(f".{name}.old"), ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


class RunStates:
    """The states of one run: folders ``checkpoint-N`` as transformers' Trainer writes them.

    Args:
        work: the work folder.
        digest: of all that defines the run.
        check: raises an error where another job may work in the folder by now.
        note: called whenever something is kept, to write down what the attempt has taken.
    """

    def __init__(
        self,
        work: Path,
        digest: str,
        check: Callable[[], None] | None = None,
        note: Callable[[], None] = lambda: None,
    ) -> None:
        self.digest = digest
        self.path = work / digest[:16]
        self.check = check
        self.note = note

    def commit(self, step: int) -> None:
        """Vouch for the state of a step, then delete all but the newest two.

        Raises:
            UserError: another job may work here.
        """
        if self.check:
            self.check()
        folder = self.path / f"checkpoint-{step}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            flush(file)
        names = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
        text = canonical_json({"run": self.digest, "step": step, "files": names})
        write_text(folder / MANIFEST, text)
        flush(folder)
        flush(self.path)
        self.note()
        for old in self._folders()[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Path | None:
        """Find the newest state that verifies; those that do not are renamed ``rejected-...``."""
        for folder in self._folders():
            fault = self._fault(folder)
            if fault is None:
                return folder
            rejected = folder.with_name(f"rejected-{folder.name}-{time.time_ns()}")
            folder.rename(rejected)
            log.warning("the state %s is not used: %s", folder.name, fault)
        return None

    def _folders(self) -> list[Path]:
        """List the states, newest first."""
        found = [
            (int(number), folder)
            for folder in self.path.glob("checkpoint-*")
            if (number := folder.name.removeprefix("checkpoint-")).isdecimal()
        ]
        return [folder for _, folder in sorted(found, reverse=True)]

    def _fault(self, folder: Path) -> str | None:
        """Say what is wrong with a state, if anything is."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["run"] != self.digest:
                return "it belongs to another run"
            if manifest["step"] != int(folder.name.removeprefix("checkpoint-")):
                return "it is of another step"
            there = {
                file.relative_to(folder).as_posix(): file_digest(file)
                for file in folder.rglob("*")
                if file.is_file() and file != folder / MANIFEST
            }
        except FileNotFoundError:
            return "it was never completed"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read ({type(error).__name__})"
        if there != manifest["files"]:
            wrong = {*there.items()} ^ {*manifest["files"].items()}
            return f"{min(name for name, _ in wrong)} is not what was saved"
        return None
