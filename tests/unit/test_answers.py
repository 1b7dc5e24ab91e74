"""A killed evaluation: it goes on from what was scored to the same bits, whatever lies there."""

import json
import logging
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

from iskd.data.corpus import save_sequences
from iskd.data.rows import write_rows
from iskd.evaluation.answers import ANSWERS, CHUNK, Answers, Scoring, scoring
from iskd.evaluation.harness import evaluate_task
from iskd.evaluation.lm import ScoringLM, batches_of
from iskd.provenance.artifact import MANIFEST, RUN
from iskd.provenance.statement import Statement, write_statement
from iskd.runtime.signals import EXIT_AGAIN, Interrupted, StopRequest
from iskd.runtime.workdir import WorkFolder
from tests.unit import test_harness
from tests.unit.synthetic import make_request
from tests.unit.test_harness import SCRIPTS, cbt_row, hellaswag_row
from tests.unit.test_heldout import heldout_loss
from tests.unit.test_job import rule

model, tokenizer = test_harness.model, test_harness.tokenizer

REQUEST = {"rule": "evaluate", "seed": 3}
CPU = torch.device("cpu")


class Killed(Exception):  # noqa: N818 - no error
    """Stand for a SIGKILL: nothing of ours catches it."""


# --- The file, and the loop over chunks, with answers that cost nothing


def batches_for(sizes: list[int]) -> list[list[int]]:
    """Make batches of different numbers."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def answer(number: int) -> list[Any]:
    return [math.sin(number) * 10.0 ** (number % 40 - 20), number % 3 == 0]


SIZES = [1 + place % 3 for place in range(3 * CHUNK + 2)]
WANTED = [answer(number) for number in range(sum(SIZES))]


def evaluate(
    file: Path, *, run: str = "run", kill_at: int | None = None, resumed: list[int] | None = None
) -> tuple[list[list[Any]], int]:
    """Answer the batches; give the answers and how many forward passes it took."""
    passes = 0

    def score(batch: list[int]) -> list[list[Any]]:
        nonlocal passes
        if passes == kill_at:
            raise Killed
        passes += 1
        return [answer(number) for number in batch]

    scored = Scoring(Answers(file, run), resumed=resumed)(batches_for(SIZES), score, b"requests")
    return scored, passes


def killed_at(file: Path, batch: int) -> None:
    with pytest.raises(Killed):
        evaluate(file, kill_at=batch)


@given(kills=st.lists(st.integers(0, len(SIZES) - 1), max_size=5))
def test_killed_at_any_batch_it_goes_on_after_the_last_whole_chunk(kills: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deep" / ANSWERS
        done = 0
        for kill in kills:
            if done + kill >= len(SIZES):
                break
            killed_at(file, kill)
            done += kill // CHUNK * CHUNK
        resumed: list[int] = []
        assert evaluate(file, resumed=resumed) == (WANTED, len(SIZES) - done)
        assert resumed == ([sum(SIZES[:done])] if done else [])
        # A third time nothing is left to do.
        assert evaluate(file) == (WANTED, 0)


def whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Path(folder) / ANSWERS)
        return (Path(folder) / ANSWERS).read_bytes()


WHOLE = whole()
LINES = WHOLE.splitlines(keepends=True)


def check_goes_on_from(data: bytes) -> int:
    """Evaluate upon a file; give how many forward passes it took, the result being right."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ANSWERS
        file.write_bytes(data)
        scored, passes = evaluate(file)
        assert scored == WANTED
        # What it leaves is what an undisturbed run writes, so that the next one can trust it.
        assert evaluate(file) == (WANTED, 0)
        return passes


def passes_after(lines: int) -> int:
    return max(0, len(SIZES) - lines * CHUNK)


@given(size=st.integers(0, len(WHOLE)))
def test_a_file_cut_at_any_byte_counts_up_to_its_last_whole_line(size: int) -> None:
    assert check_goes_on_from(WHOLE[:size]) == passes_after(WHOLE[:size].count(b"\n"))


@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_any_byte_changed_ends_what_is_trusted(place: int, byte: int) -> None:
    data = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    if data != WHOLE:
        before = WHOLE[:place].count(b"\n")
        # Space for space is no change: then the line still says the same.
        assert check_goes_on_from(data) in (passes_after(before), 0)


@given(place=st.integers(0, len(WHOLE)), inserted=st.binary(min_size=1, max_size=30))
def test_any_bytes_inserted_change_no_answer(place: int, inserted: bytes) -> None:
    check_goes_on_from(WHOLE[:place] + inserted + WHOLE[place:])


@given(lines=st.lists(st.sampled_from(LINES), max_size=6))
def test_lines_count_in_their_order_only(lines: list[bytes]) -> None:
    good = 0
    while good < min(len(lines), len(LINES)) and lines[good] == LINES[good]:
        good += 1
    assert check_goes_on_from(b"".join(lines)) == passes_after(good)


FOREIGN = {
    "an empty line": b"\n",
    "no JSON": b"{\n",
    "no text": b"\xff\xfe\n",
    "a list": b"[]\n",
    "a number": b"3\n",
    "an empty object": b"{}\n",
    "no answers": b'{"answers": null, "digest": "", "key": null}\n',
    "deep": b"[" * 100_000 + b"\n",
    "a long number": b'{"answers": ' + b"9" * 5000 + b"}\n",
    "half a letter": b'{"answers": ["\\ud800"], "digest": "", "key": 1}\n',
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_lines_are_not_used(what: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert check_goes_on_from(LINES[0] + FOREIGN[what] + LINES[1]) == passes_after(1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{ANSWERS} is used up to byte {len(LINES[0])}: what follows is not as it was written"
    ]


def test_an_answer_with_a_new_digest_of_its_own_needs_the_lines_before(tmp_path: Path) -> None:
    """A line of another run is no line of this one, even where all requests are the same."""
    file = tmp_path / ANSWERS
    evaluate(file, run="another")
    assert evaluate(file) == (WANTED, len(SIZES))


def test_lines_of_other_requests_are_cut_off(tmp_path: Path) -> None:
    file = tmp_path / ANSWERS
    killed_at(file, 2 * CHUNK)

    def score(batch: list[int]) -> list[Any]:
        return [-number for number in batch]

    found = Scoring(Answers(file, "run"))(batches_for(SIZES), score, b"something else")
    assert found == [-number for number in range(sum(SIZES))]


def test_calls_of_one_evaluation_are_distinguished(tmp_path: Path) -> None:
    file = tmp_path / ANSWERS
    batches = batches_for(SIZES)

    def run(kill_at: int | None = None) -> tuple[list[Any], list[int]]:
        passes = 0
        resumed: list[int] = []
        evaluation = Scoring(Answers(file, "run"), resumed=resumed)

        def times(factor: int) -> list[Any]:
            def score(batch: list[int]) -> list[int]:
                nonlocal passes
                if passes == kill_at:
                    raise Killed
                passes += 1
                return [factor * number for number in batch]

            return evaluation(batches, score, b"the same requests")

        return [times(factor) for factor in (1, 2)], resumed

    wanted = [[factor * number for number in range(sum(SIZES))] for factor in (1, 2)]
    for kill_at in (CHUNK, len(SIZES) + CHUNK):
        with pytest.raises(Killed):
            run(kill_at)
    # The second attempt had CHUNK passes less to do and came that much farther.
    assert run() == (wanted, [sum(SIZES), sum(SIZES[: 2 * CHUNK])])


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1e308])
def test_floats_come_back_as_they_were(value: float, tmp_path: Path) -> None:
    Answers(tmp_path / ANSWERS, "run").add({}, [value])
    (found,) = Answers(tmp_path / ANSWERS, "run").next({}, 1) or []
    assert (found, math.copysign(1, found)) == (value, math.copysign(1, value))


def test_a_broken_models_nan_comes_back_too(tmp_path: Path) -> None:
    Answers(tmp_path / ANSWERS, "run").add({}, [math.nan])
    (found,) = Answers(tmp_path / ANSWERS, "run").next({}, 1) or []
    assert math.isnan(found)


def test_a_line_that_does_not_fit_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ANSWERS
    answers = Answers(file, "run")
    answers.add({"chunk": 0}, [1.0])
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            answers.add({"chunk": 1}, [2.0])
    assert file.read_bytes() == before


def test_evaluations_of_one_job_do_not_share_answers(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work", REQUEST)

    def both() -> list[list[Any]]:
        found = []
        for factor in (1, 2):
            with scoring(work, CPU) as score:

                def times(batch: list[int], factor: int = factor) -> list[int]:
                    return [factor * number for number in batch]

                found.append(score([[1, 2], [3]], times, b"the same"))
        return found

    assert both() == [[1, 2, 3], [2, 4, 6]]
    assert len(list(tmp_path.glob(f"work/*/{ANSWERS}"))) == 2


def test_progress_is_logged_in_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / ANSWERS
    killed_at(file, 2 * CHUNK)
    done, total = sum(SIZES[: 2 * CHUNK]), sum(SIZES)
    with caplog.at_level(logging.INFO):
        evaluate(file)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == f"{done} of {total} texts were scored before"
    assert messages[-1] == f"{total} of {total} texts scored"
    counts = [int(line.split()[0]) for line in messages]
    assert counts == sorted(counts)
    assert len(messages) < 12


def test_a_stop_comes_before_the_next_forward_pass() -> None:
    stop = StopRequest()
    passes = 0

    def score(batch: list[int]) -> list[int]:
        nonlocal passes
        passes += 1
        if passes == CHUNK + 2:
            stop.signal_name = "SIGTERM"
        return batch

    kept = sum(SIZES[:CHUNK])
    with pytest.raises(Interrupted, match=f"SIGTERM .* the first {kept} of {sum(SIZES)} are kept"):
        Scoring(stop=stop)(batches_for(SIZES), score, b"")
    assert passes == CHUNK + 2


# --- Batches, and real evaluations


def stock_passes(requests: list[Any], model: Any, tokenizer: Any, size: int) -> list[Any]:
    """Give the token matrices that lm-eval's own model hands to ours, and its answers."""
    from lm_eval.models.huggingface import HFLM

    return passes_of(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, softmax_dtype="float32"),
        requests,
    )


def passes_of(lm: Any, requests: list[Any]) -> list[Any]:
    seen: list[Any] = []
    call = lm._model_call

    def watched(inps: torch.Tensor, **named: Any) -> torch.Tensor:
        seen.append(inps.tolist())
        logits: torch.Tensor = call(inps, **named)
        return logits

    lm._model_call = watched
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return [seen, [tuple(found) for found in answers]]


TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@settings(max_examples=40)
@given(pairs=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=60), size=st.integers(1, 3))
def test_batches_and_bits_are_lm_evals(
    pairs: list[tuple[list[int], list[int]]],
    size: int,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Few different tokens, so that many requests share a text of the forward pass.

    Of models that cannot share beginnings. Of the others, answers are the same but for rounding,
    and but for where lm-eval 0.4.13 errs: of requests that read the same and ask for different
    numbers of tokens, it answers all as it does the longest.
    """
    requests = [(("", ""), context, text) for context, text in pairs]
    stock = stock_passes(requests, model, tokenizer, size)
    lengths: dict[tuple[int, ...], set[int]] = {}
    for context, text in pairs:
        lengths.setdefault((*context, *text[:-1]), set()).add(len(text))
    ours = passes_of(ScoringLM(model, tokenizer, size), requests)[1]
    for (context, text), (found, greedy), (wanted, wanted_greedy) in zip(
        pairs, ours, stock[1], strict=True
    ):
        if len(lengths[*context, *text[:-1]]) == 1:
            assert found == pytest.approx(wanted, abs=1e-5)
            assert greedy == wanted_greedy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iskd.evaluation.lm.can_share", lambda *_: False)
        ours = passes_of(ScoringLM(model, tokenizer, size), requests)
    assert ours == stock
    assert sorted(i for batch in batches_of(requests, size) for i in batch) == list(
        range(len(requests))
    )


def stopping(model: Any, at: int, how: Callable[[], None]) -> Any:
    """Do something in the ``at``-th forward pass of a model, counted from 0; give the handle."""
    passes = 0

    def hook(*_: Any) -> None:
        nonlocal passes
        if passes == at:
            how()
        passes += 1

    # Where logits are needed at few places, the outer model itself is not called.
    return model.base_model.register_forward_pre_hook(hook)


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("kind", ["cbt_context", "hellaswag"])
def test_an_evaluation_killed_anywhere_ends_with_the_same_bits(
    kind: str,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    path, make = tmp_path / "rows.jsonl", hellaswag_row if kind == "hellaswag" else cbt_row
    write_rows(path, [make(number) for number in range(48)])

    passes = 0

    def run(work: WorkFolder | None = None) -> str:
        nonlocal passes
        passes = 0
        result = evaluate_task(model, tokenizer, kind, path, batch_size=2, seed=1, work=work)
        return json.dumps(asdict(result))

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    counting = model.base_model.register_forward_pre_hook(count)
    wanted = run()
    all_passes = passes
    for at in (3, 11, 2 * CHUNK - 1):
        handle = stopping(model, at, kill)
        with pytest.raises(Killed):
            run(WorkFolder(tmp_path / "work", REQUEST))
        handle.remove()
    work = WorkFolder(tmp_path / "work", REQUEST)
    assert run(work) == wanted
    # The attempts got on by no, one and one chunk.
    assert passes == all_passes - 2 * CHUNK
    assert len(work.resumed_texts) == 1
    other = WorkFolder(tmp_path / "work", {**REQUEST, "seed": 4})
    assert run(other) == wanted
    assert (passes, other.resumed_texts) == (all_passes, [])
    counting.remove()


@pytest.fixture
def sequences() -> torch.Tensor:
    return torch.randint(0, 300, (51, 12), generator=torch.Generator().manual_seed(1))


@settings(max_examples=10)
@given(kills=st.lists(st.integers(0, 25), max_size=3))
def test_a_heldout_loss_killed_anywhere_ends_with_the_same_bits(
    kills: list[int],
    model: GPT2LMHeadModel,
) -> None:
    tokens = torch.randint(0, 300, (51, 12), generator=torch.Generator().manual_seed(1))
    wanted = heldout_loss(model, tokens, batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for at in kills:
            if done + at >= 26:
                break
            handle = stopping(model, at, kill)
            with pytest.raises(Killed):
                heldout_loss(
                    model, tokens, batch_size=2, work=WorkFolder(Path(folder) / "work", REQUEST)
                )
            handle.remove()
            done += at // CHUNK * CHUNK
        work = WorkFolder(Path(folder) / "work", REQUEST)
        assert heldout_loss(model, tokens, batch_size=2, work=work) == wanted
        assert work.resumed_texts == ([2 * done] if done else [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_an_evaluation_before_the_next_pass(
    number: signal.Signals,
    model: GPT2LMHeadModel,
    sequences: torch.Tensor,
    tmp_path: Path,
) -> None:
    before = signal.getsignal(number)
    handle = stopping(model, CHUNK + 1, lambda: os.kill(os.getpid(), number))
    beyond = stopping(model, CHUNK + 2, kill)
    with pytest.raises(Interrupted, match=f"{number.name} while texts are scored; the first 16"):
        heldout_loss(model, sequences, batch_size=2, work=WorkFolder(tmp_path / "work", REQUEST))
    handle.remove()
    beyond.remove()
    assert signal.getsignal(number) is before
    work = WorkFolder(tmp_path / "work", REQUEST)
    found = heldout_loss(model, sequences, batch_size=2, work=work)
    assert found == heldout_loss(model, sequences, batch_size=2)
    assert work.resumed_texts == [16]


# --- The scripts, in processes that are really killed


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A checkpoint, rows and held-out text as the scripts find them."""
    folder = tmp_path_factory.mktemp("inputs")
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    text = write_statement(Statement(make_request(), {}, {}))
    (folder / "teacher" / MANIFEST).write_text(text, encoding="utf-8")
    write_rows(folder / "rows.jsonl", [hellaswag_row(number) for number in range(320)])
    tokens = torch.randint(0, 300, (256, 12), generator=torch.Generator().manual_seed(1))
    save_sequences(tokens.to(torch.int32), folder / "heldout.safetensors")
    return folder


def run_script(script: str, folder: str, pause: str) -> None:
    """Run a rule's script, with a pause before each forward pass: the child processes' start."""
    forward = GPT2Model.forward

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(float(pause))
        return forward(*arguments, **named)

    GPT2Model.forward = slow
    place = Path(folder)
    snakemake = rule(
        {"result": "results/make/result.json"},
        inputs={
            "model": str(place / "teacher" / MANIFEST),
            "rows": str(place / "rows.jsonl"),
            "heldout": str(place / "heldout.safetensors"),
        },
        task={"kind": "hellaswag", "stock": False, "fewshot": 0},
        batch_size=4,
        precision="float32",
        seed=0,
    )
    runpy.run_path(
        str(SCRIPTS / f"{script}.py"), init_globals={"snakemake": snakemake}, run_name="__main__"
    )


def start(script: str, inputs: Path, cwd: Path, *, pause: float) -> "subprocess.Popen[str]":
    call = f"run_script({script!r}, {str(inputs)!r}, '{pause}')"
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.unit.test_answers import run_script; {call}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{SCRIPTS}:{SCRIPTS.parent}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(script: str, inputs: Path, cwd: Path) -> dict[str, bytes]:
    """Run a script to its end and read what it published, but how it went."""
    with start(script, inputs, cwd, pause=0) as job:
        _, output = job.communicate()
    assert job.returncode == 0, output
    return {
        file.name: file.read_bytes()
        for file in (cwd / "results/make").iterdir()
        if file.name != RUN
    }


def wait_for_lines(cwd: Path, lines: int, job: "subprocess.Popen[str]") -> int:
    """Wait until so many chunks are kept, and give how many are."""
    while job.poll() is None:
        found = sum(
            f.read_bytes().count(b"\n") for f in cwd.glob(f"results/.make.work/*/{ANSWERS}")
        )
        if found >= lines:
            return found
        time.sleep(0.005)
    pytest.fail("the job ended before it could be killed")


@pytest.mark.parametrize("script", ["evaluate", "evaluate_heldout"])
def test_a_script_that_is_killed_publishes_the_same_bytes(
    script: str, inputs: Path, tmp_path: Path
) -> None:
    places = SimpleNamespace(whole=tmp_path / "whole", killed=tmp_path / "killed")
    for place in vars(places).values():
        place.mkdir()
    wanted = finish(script, inputs, places.whole)
    report = json.loads((places.whole / "results/make" / RUN).read_text())
    assert (report["resumed_after_steps"], report["resumed_after_texts"]) == ([], [])
    with start(script, inputs, places.killed, pause=0.05) as job:
        kept = wait_for_lines(places.killed, 1, job)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    with start(script, inputs, places.killed, pause=0.05) as job:
        kept = wait_for_lines(places.killed, kept + 2, job)
        job.send_signal(signal.SIGTERM)
        _, output = job.communicate()
    assert (job.returncode, output) == (EXIT_AGAIN, "")
    assert not (places.killed / "results/make").exists()
    assert "call snakemake again" in (places.killed / "results/logs/make.log").read_text()
    assert finish(script, inputs, places.killed) == wanted
    report = json.loads((places.killed / "results/make" / RUN).read_text())
    assert report["resumed_after_texts"][0] >= kept * CHUNK * 4
    assert report["seconds_in_all"] > report["seconds"]
    assert "texts were scored before" in (places.killed / "results/logs/make.log").read_text()
    assert not (places.killed / "results/.make.work").exists()
