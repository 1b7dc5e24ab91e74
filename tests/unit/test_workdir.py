"""What a killed run leaves behind: it goes on from there to the same bits, or not at all."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iskd.errors import UserError
from iskd.models.scratch import fresh_model, scratch_config
from iskd.provenance.artifact import MANIFEST
from iskd.provenance.ledger import STATE_SECONDS
from iskd.runtime.signals import Interrupted
from iskd.runtime.workdir import WorkFolder, state_seconds
from iskd.settings import LearningRates, TrainingSettings
from iskd.training.loop import fine_tune
from tests.unit.conftest import POSITIONS, VOCABULARY

SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=4,
    learning_rate=LearningRates(compact=1e-3, rest=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    beta2=0.95,
    schedule="cosine",
    warmup=0.1,
    clip=1.0,
    precision="float32",
)
STEPS = 12  # two epochs of 22 sequences, the last batch of each a short one
REQUEST = {"rule": "substitute_block", "seed": 3}
Result = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]
OnUpdate = Callable[[int, int], None]


class Killed(Exception):  # noqa: N818 - no error either
    """Stand for a SIGKILL: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def _a_state_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_SECONDS, "0")


def train(
    work: WorkFolder | None = None, on_update: OnUpdate | None = None, *, epochs: int = 2
) -> Result:
    shape = {"blocks": 2, "width": 16, "heads": 2, "mlp": None}
    config = scratch_config(
        "gpt2", shape, vocabulary=VOCABULARY, positions=POSITIONS, end_token=0, dropout=0.1
    )
    model = fresh_model(config, seed=1)
    sequences = torch.randint(
        1, VOCABULARY, (22, 10), generator=torch.Generator().manual_seed(7), dtype=torch.int32
    )
    history = fine_tune(
        model, sequences, replace(SETTINGS, epochs=epochs), seed=5, work=work, on_update=on_update
    )
    return model.state_dict(), history


@pytest.fixture(scope="module")
def undisturbed() -> Result:
    return train()


def kill_before(update: int) -> OnUpdate:
    def on_update(now: int, total: int) -> None:
        del total
        if now == update:
            raise Killed

    return on_update


def killed_run(folder: Path, update: int = 7) -> WorkFolder:
    """Train until an update, with a state after each one before."""
    with pytest.raises(Killed):
        train(WorkFolder(folder, REQUEST), kill_before(update))
    return WorkFolder(folder, REQUEST)


def check_same(found: Result, wanted: Result) -> None:
    for name, value in wanted[0].items():
        assert torch.equal(value, found[0][name]), name
    assert found[1] == wanted[1]


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/checkpoint-*"))


def newest(folder: Path) -> Path:
    return max(folder.glob("*/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def test_states_change_no_bit(undisturbed: Result, tmp_path: Path) -> None:
    check_same(train(WorkFolder(tmp_path / "work", REQUEST)), undisturbed)


@settings(max_examples=6, deadline=None)
@given(kills=st.lists(st.integers(1, STEPS - 1), min_size=1, max_size=3))
def test_a_run_killed_any_number_of_times_ends_with_the_same_bits(
    kills: list[int], undisturbed: Result, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("killed") / "work"
    reached = 0
    for update in sorted(set(kills)):
        with pytest.raises(Killed):
            train(WorkFolder(folder, REQUEST), kill_before(update))
        reached = update
    work = WorkFolder(folder, REQUEST)
    check_same(train(work), undisturbed)
    assert work.resumed == [reached]


def test_two_states_are_kept_and_no_pickle_of_paths(tmp_path: Path) -> None:
    killed_run(tmp_path / "work")
    assert states(tmp_path / "work") == ["checkpoint-6", "checkpoint-7"]
    assert not list(tmp_path.rglob("training_args.bin"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_and_saves(
    number: signal.Signals,
    undisturbed: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(STATE_SECONDS, "1000")

    def on_update(now: int, total: int) -> None:
        del total
        if now == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} after step 5 of {STEPS}"):
        train(WorkFolder(tmp_path / "work", REQUEST), on_update)
    assert signal.getsignal(number) is before
    assert states(tmp_path / "work") == ["checkpoint-5"]
    work = WorkFolder(tmp_path / "work", REQUEST)
    check_same(train(work), undisturbed)
    assert work.resumed == [5]


def test_a_signal_in_the_last_step_changes_nothing(undisturbed: Result, tmp_path: Path) -> None:
    def on_update(now: int, total: int) -> None:
        if now == total - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    check_same(train(WorkFolder(tmp_path / "work", REQUEST), on_update), undisturbed)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def of_another_step(state: Path) -> None:
    older = state.with_name("checkpoint-6")
    (state / "model.safetensors").write_bytes((older / "model.safetensors").read_bytes())


def renamed(state: Path) -> None:
    state.rename(state.with_name("checkpoint-11"))


def of_another_run(state: Path) -> None:
    manifest = json.loads((state / MANIFEST).read_text())
    (state / MANIFEST).write_text(json.dumps(manifest | {"run": "0" * 64}))


TAMPERED: dict[str, Callable[[Path], object]] = {
    "no optimizer": lambda s: (s / "optimizer.pt").unlink(),
    "no scheduler": lambda s: (s / "scheduler.pt").unlink(),
    "no random state": lambda s: (s / "rng_state.pth").unlink(),
    "no trainer state": lambda s: (s / "trainer_state.json").unlink(),
    "no weights": lambda s: (s / "model.safetensors").unlink(),
    "no curve": lambda s: (s / "curve.json").unlink(),
    "no manifest": lambda s: (s / MANIFEST).unlink(),
    "a weight's bit": lambda s: flip(s / "model.safetensors"),
    "an optimizer's bit": lambda s: flip(s / "optimizer.pt"),
    "weights cut": lambda s: truncate(s / "model.safetensors"),
    "optimizer cut": lambda s: truncate(s / "optimizer.pt"),
    "weights zeroed": lambda s: zero(s / "model.safetensors"),
    "manifest cut": lambda s: truncate(s / MANIFEST),
    "manifest no JSON": lambda s: (s / MANIFEST).write_text("[]"),
    "a file more": lambda s: (s / "more.bin").write_bytes(b"x"),
    "another step's weights": of_another_step,
    "another step's name": renamed,
    "another run's": of_another_run,
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_state_that_was_tampered_with_is_put_aside(
    how: str, undisturbed: Result, tmp_path: Path
) -> None:
    work = killed_run(tmp_path / "work")
    TAMPERED[how](newest(tmp_path / "work"))
    check_same(train(work), undisturbed)
    assert work.resumed == [6]
    assert len(list(tmp_path.glob("work/*/rejected-*"))) == 1


def test_without_a_good_state_it_begins_anew(undisturbed: Result, tmp_path: Path) -> None:
    work = killed_run(tmp_path / "work")
    for state in tmp_path.glob("work/*/checkpoint-*"):
        flip(state / "model.safetensors")
    check_same(train(work), undisturbed)
    assert work.resumed == []


def test_a_run_with_other_parameters_does_not_see_the_state(
    undisturbed: Result, tmp_path: Path
) -> None:
    killed_run(tmp_path / "work")
    other = WorkFolder(tmp_path / "work", {**REQUEST, "seed": 4})
    check_same(train(other), undisturbed)
    assert other.resumed == []


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


def test_nor_does_one_with_other_threads(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    killed_run(tmp_path / "work")
    request.getfixturevalue("two_threads")
    work = WorkFolder(tmp_path / "work", REQUEST)
    train(work)
    assert work.resumed == []


HOLDER = """
import signal
import sys
from pathlib import Path
if "busy" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
from iskd.runtime.workdir import WorkFolder
with WorkFolder(Path(sys.argv[1]), {}).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(work: Path, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """Have another process hold the lock of a work folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(work), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder


def test_one_process_at_a_time_works_on_an_artifact(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work", {})
    with held(work.path, "busy") as holder:
        with pytest.raises(Interrupted, match="another job"), work.locked(patience=0.2):
            pass
        # A lock goes with its process, however that ends.
        holder.kill()
    with work.locked(patience=5):
        assert work.path.is_dir()
    assert not work.path.exists()


def test_a_job_that_was_lost_is_asked_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its Snakemake was killed and it ran on; the next one's job takes over from it."""
    work = WorkFolder(tmp_path / "work", {})
    with held(work.path) as lost, caplog.at_level("INFO"), work.locked(patience=60):
        assert lost.wait() == -signal.SIGTERM
    assert f"process {lost.pid} is asked" in caplog.text


def test_what_goes_wrong_under_a_lock_is_handed_on(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), WorkFolder(tmp_path / "work", {}).locked():
        raise PermissionError


def test_a_time_between_states_that_is_no_number_is_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(STATE_SECONDS, "often")
    with pytest.raises(UserError, match=f"{STATE_SECONDS}: 'often'"):
        state_seconds()


TRAINER = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from iskd.runtime.workdir import WorkFolder
from tests.unit import test_workdir as here
import torch
torch.set_num_threads(1)
work = WorkFolder(Path(sys.argv[1]), {})
with work.locked():
    print("started", flush=True)
    state, history = here.train(work, lambda step, total: print(step, flush=True), epochs=10)
save_file({n: v.contiguous().clone() for n, v in state.items()}, sys.argv[2])
"""


def start_trainer(folder: Path) -> "subprocess.Popen[str]":
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(folder / "work"), str(folder / "model.safetensors")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'scripts'}:{root}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_sigkill_at_any_moment_costs_no_bit(tmp_path: Path) -> None:
    """Kill a process that saves all the time: mostly it is writing a state when it dies."""
    draw = random.Random(23)
    whole = tmp_path / "whole"
    whole.mkdir()
    with start_trainer(whole) as trainer:
        trainer.communicate()
    assert trainer.returncode == 0
    reached = [0]
    for _ in range(3):
        with start_trainer(tmp_path) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "started\n"
            first = int(trainer.stdout.readline())
            for _ in range(draw.randint(0, 2)):
                trainer.stdout.readline()
            time.sleep(draw.uniform(0, 0.05))
            trainer.kill()
        assert trainer.returncode == -signal.SIGKILL
        reached.append(first)
    # It got on, and never began before the last state but one.
    assert reached[-1] > 0
    assert reached == sorted(reached)
    with start_trainer(tmp_path) as trainer:
        trainer.communicate()
    assert trainer.returncode == 0
    wanted = (whole / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == wanted
