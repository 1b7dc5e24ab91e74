"""Record what a teacher says about training sequences, so that it is asked once.

It says what it says whatever the student does, so its answers can be kept and shared by all arms
of a study: its last hidden states, of which its logits follow, or tokens drawn from its
distribution, which are few (:class:`iskd.training.row_losses.TeacherDraws`).

The answers to a number of sequences make a file, which is kept in the job's work folder until all
are there. What a file holds follows from the sequences in it, so a job that was killed goes on
with the files that it lacks, to the same bytes.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from iskd.data.corpus import check_length, step_rows, without_validation
from iskd.errors import UserError
from iskd.progress import bar
from iskd.provenance.artifact import file_digest, flush, write_text
from iskd.provenance.machine import bits_depend_on
from iskd.provenance.statement import canonical_json
from iskd.provenance.tensors import ANSWERS_ABOUT, PROJECTION, answer_file, answer_files
from iskd.runtime.signals import Interrupted, StopRequest
from iskd.runtime.workdir import RunStates, WorkFolder
from iskd.settings import RecordingSettings
from iskd.training.flops import count_forward

log = logging.getLogger("iskd.training")

FILE_TOKENS = 32_768
"""Tokens whose answers make a file: what a kill costs at most, and what is held in memory."""
AT_ONCE = 4_096
"""Tokens of a forward pass."""
ROWS = 256
"""Positions whose distributions are drawn from at once."""
_TRIED = 16
"""Tokens on which it is tried whether logits are what the output projection gives."""
# What 16 bits without a sign hold.
_SMALL_VOCABULARY = 2**16


def recorded_rows(folders: Sequence[Path]) -> torch.Tensor:
    """List which sequences of the corpus some artifacts are about, int64, in their order."""
    parts = [torch.empty(0, dtype=torch.int64)]
    for file in (file for folder in folders for file in answer_files(folder)):
        opened: Any
        with safe_open(file, framework="pt") as opened:
            parts.append(opened.get_tensor("rows"))
    return torch.cat(parts)


def step_answers(
    corpus: torch.Tensor, settings: RecordingSettings, *, step: int, seed: int, known: torch.Tensor
) -> torch.Tensor:
    """List the sequences that a step trains on and nothing is recorded of yet.

    Args:
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the job.
        step: number of the step, from 1.
        seed: seed of the run.
        known: the sequences whose answers the steps before have, int64.

    Returns:
        their places in the corpus, int64, in ascending order

    Raises:
        UserError: the corpus is smaller than what is set aside of it.
    """
    kept, _ = without_validation(corpus, settings.validation)
    rows = torch.arange(len(kept))
    if settings.sequences is not None:
        rows = step_rows(len(kept), settings.sequences, seed=seed, first=step, last=step).unique()
    return rows[~torch.isin(rows, known)]


def record(
    teacher: Callable[[], PreTrainedModel],
    corpus: torch.Tensor,
    settings: RecordingSettings,
    *,
    step: int,
    seed: int,
    out: Path,
    earlier: Sequence[Path] = (),
    work: WorkFolder | None = None,
) -> dict[str, Any]:
    """Write what a teacher says about the sequences that a step adds to those before it.

    Args:
        teacher: gives the teacher; called only where something is to be recorded.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the job.
        step: number of the step, from 1.
        seed: seed of the run: of the order of the corpus, and of what is drawn.
        out: the folder to write into.
        earlier: the artifacts of the steps before.
        work: where finished files are kept, if the job is to survive being killed.

    Returns:
        what ``answers.json`` says: the fields of the settings, ``vocabulary``, ``positions`` (of a
        sequence, with an answer each), ``sequences`` and ``flops`` of what was recorded here

    Raises:
        UserError: the sequences are longer than the model takes, the model's logits are not what
            its output projection gives, or it answers with what is no number.
        Interrupted: the process was asked to stop; finished files are kept.
    """
    rows = step_answers(corpus, settings, step=step, seed=seed, known=recorded_rows(earlier))
    about: dict[str, Any] = {
        "kind": settings.kind,
        "teacher_precision": settings.teacher_precision,
        "temperature": settings.temperature,
        "draws": settings.draws,
        "positions": corpus.shape[1] - 1,
        "sequences": len(rows),
        "flops": 0,
    }
    if len(rows):
        model = teacher().to(getattr(torch, settings.teacher_precision)).eval()
        check_length(model, corpus)
        recorder = _Recorder(model, corpus, settings, seed)
        about |= {"vocabulary": recorder.vocabulary, "flops": len(rows) * recorder.flops()}
        _write_files(recorder, rows, out, work)
        if settings.kind == "exact" and not earlier:
            save_file(recorder.projection(), out / PROJECTION)
    else:
        log.info("the steps before have all that this one needs")
        first = json.loads((earlier[0] / ANSWERS_ABOUT).read_text(encoding="utf-8"))
        about["vocabulary"] = first["vocabulary"]
    (out / ANSWERS_ABOUT).write_text(canonical_json(about), encoding="utf-8")
    return about


def _write_files(
    recorder: "_Recorder", rows: torch.Tensor, out: Path, work: WorkFolder | None
) -> None:
    """Write the files of answers, as far as they are not there from before."""
    parts = rows.split(max(1, FILE_TOKENS // recorder.corpus.shape[1]))
    states = work.run(**bits_depend_on(recorder.model.device)) if work is not None else None
    stop = StopRequest()
    done = before = 0
    with bar(len(rows), "recording", unit="sequence") as shown, stop.handling_signals():
        for number, part in enumerate(parts, 1):
            name = answer_file(number)
            file = (out if states is None else states.path) / name
            if states is not None and _is_kept(file, states):
                before += len(part)
            else:
                tensors = recorder.answers(part, stop, done)
                if states is None:
                    save_file(tensors, file)
                else:
                    _keep(tensors, file, states)
            if states is not None:
                _link(file, out / name)
            done += len(part)
            shown.update(len(part))
            log.info("%d of %d sequences are recorded", done, len(rows))
    if before and work is not None:
        log.info("%d of them were recorded before", before)
        work.resumed_texts.append(before)


def _is_kept(file: Path, states: RunStates) -> bool:
    """Tell whether an earlier attempt has written a file, all of it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if kept["run"] == states.digest and kept["sha256"] == file_digest(file):
            return True
        log.warning("%s is recorded anew: it is not what was kept", file.name)
    return False


def _keep(tensors: dict[str, torch.Tensor], file: Path, states: RunStates) -> None:
    """Write a file, then vouch for it."""
    if states.check:
        states.check()
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in (file.with_suffix(".json"), file):
        left.unlink(missing_ok=True)
    save_file(tensors, file)
    flush(file)
    text = canonical_json({"run": states.digest, "sha256": file_digest(file)})
    write_text(file.with_suffix(".json"), text)
    flush(file.parent)
    states.note()


def _link(file: Path, to: Path) -> None:
    """Have a file in the artifact too: it stays kept until the artifact is published."""
    try:
        os.link(file, to)
    except OSError:  # a file system without links
        shutil.copyfile(file, to)


class _Recorder:
    """Ask a teacher.

    Args:
        model: the teacher, in the number format it answers in.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the job.
        seed: seed of what is drawn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        corpus: torch.Tensor,
        settings: RecordingSettings,
        seed: int,
    ) -> None:
        self.model = model
        self.corpus = corpus
        self.settings = settings
        self.seed = seed
        self.head = model.get_output_embeddings()
        self.vocabulary: int = self.head.weight.shape[0]
        self._check_head()

    @torch.inference_mode()
    def _check_head(self) -> None:
        ids = self.corpus[:1, :_TRIED].long().to(self.model.device)
        own = self.model(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(own, self.head(self._hidden(ids)).float(), rtol=1e-2, atol=1e-2):
            raise UserError(
                "this teacher's logits are not what its output projection gives, so they cannot be "
                "recorded: set teacher_cache to none"
            )

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model.base_model(
            input_ids=ids, use_cache=False
        ).last_hidden_state
        return hidden

    @torch.inference_mode()
    def flops(self) -> int:
        """Count what recording a sequence costs."""
        ids = self.corpus[:1].long().to(self.model.device)

        def run() -> None:
            hidden = self._hidden(ids)
            if self.settings.kind == "sampled":
                self.head(hidden[:, :-1])

        return count_forward(run)

    def projection(self) -> dict[str, torch.Tensor]:
        """Give the output projection's tensors."""
        return {name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}

    @torch.inference_mode()
    def answers(self, rows: torch.Tensor, stop: StopRequest, done: int) -> dict[str, torch.Tensor]:
        """Give what a file holds.

        Args:
            rows: sequences' places in the corpus, int64.
            stop: whether somebody wants this process to end.
            done: how many sequences are recorded so far, for the message.

        Raises:
            UserError: the teacher answers with what is no number.
            Interrupted: somebody does.
        """
        found: list[dict[str, torch.Tensor]] = []
        for part in rows.split(max(1, AT_ONCE // self.corpus.shape[1])):
            if stop:
                raise Interrupted(
                    f"{stop.signal_name} while answers are recorded; those to the first {done} "
                    "sequences are kept"
                )
            hidden = self._hidden(self.corpus[part].long().to(self.model.device))[:, :-1]
            if not hidden.isfinite().all():
                raise UserError(
                    "the teacher's hidden states are no numbers; set teacher_precision to float32"
                )
            if self.settings.kind == "exact":
                found.append({"hidden": hidden.cpu()})
            else:
                drawn = zip(part.tolist(), hidden, strict=True)
                found += [self._drawn(row, states) for row, states in drawn]
        joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        if "tokens" in joined and self.vocabulary <= _SMALL_VOCABULARY:
            joined["tokens"] = joined["tokens"].to(torch.uint16)
        return {"rows": rows, **joined}

    def _drawn(self, row: int, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Draw from a sequence's distributions, with numbers of its own.

        Args:
            row: the sequence's place in the corpus.
            states: its last hidden states, (positions, hidden size).
        """
        heat, draws = self.settings.temperature, self.settings.draws
        assert heat is not None  # noqa: S101 - narrows the types
        assert draws is not None  # noqa: S101
        # numpy mixes both numbers well, where torch's generator keeps 32 bits of a seed.
        drawn = np.random.default_rng([self.seed, row]).random((len(states), draws))
        tokens, shares = [], []
        for start in range(0, len(states), ROWS):
            logs = (self.head(states[start : start + ROWS]).float() / heat).log_softmax(-1)
            where = torch.from_numpy(drawn[start : start + ROWS]).to(logs.device)
            found = _tokens_at(logs.exp(), where)
            tokens.append(found.int().cpu())
            shares.append(logs.gather(1, found).mean(-1).cpu())
        return {"tokens": torch.cat(tokens)[None], "log_share": torch.cat(shares)[None]}


def _tokens_at(shares: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Find the entries at which the sum of probabilities passes some numbers from [0, 1).

    Args:
        shares: probabilities, float32 (rows, vocabulary).
        where: float64 (rows, draws).

    Returns:
        int64 (rows, draws)
    """
    sums = shares.cumsum(-1, dtype=torch.float64)
    # Rounding leaves the last sum a little off 1; an entry of probability 0 is never found.
    found = torch.searchsorted(sums, where * sums[:, -1:], right=True)
    return found.clamp_max(shares.shape[-1] - 1)
