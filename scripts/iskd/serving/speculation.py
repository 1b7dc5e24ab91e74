"""A compressed model as its teacher's draft: speculative decoding, measured at batch 1.

The draft writes a few tokens, the teacher reads all of them in one forward pass and keeps those
that it would have written itself, up to the first other one, which it corrects (arXiv 2211.17192,
2302.01318). Decoding is greedy, by transformers' assisted generation. The text is then the
teacher's own but for ties that the other shape of the computation breaks another way.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from iskd.errors import UserError
from iskd.evaluation.metric import Metric
from iskd.models.modeling.iskd_blocks import ChangedBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = (
    "Once upon a time there was a little",
    "The man opened the door and saw",
    "In the morning the children went to",
    '"I do not know," said the',
    "The most important thing about water is that",
    "After the war, the city was",
    "She took the letter from the table and",
    "A simple way to explain how a plant grows is",
)
"""Beginnings of sentences for whoever names no file of prompts."""


@dataclass(frozen=True)
class Drafting:
    """How a draft is used and measured.

    Attributes:
        new_tokens: tokens written after each prompt; an end token does not stop the text.
        draft_tokens: tokens that the draft writes before the teacher reads them; each number is
            measured.
        repeats: how often each prompt is continued in each way.
    """

    new_tokens: int
    draft_tokens: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Drafted:
    """What came out of a draft with one number of drafted tokens.

    Attributes:
        model: the draft's name.
        parameters: how many the draft has.
        draft_tokens: tokens that it writes at a time.
        acceptance: share of the drafted tokens that the teacher kept. What follows a token that
            it did not keep counts as drafted, too.
        per_pass: tokens of the text for each forward pass of the teacher; 1 without a draft.
        alone: tokens per second of the draft without its teacher.
        plain: the same of the teacher without a draft.
        assisted: the same of both together.
        ratio: assisted / plain, median over pairs of one prompt and repeat.
        same: prompts whose text is the teacher's own.
        prompts: how many there were.
        margin: where a text differs, the largest distance between the teacher's two highest
            logits at its first different token: rounding breaks ties, so it is near zero.
    """

    model: str
    parameters: int
    draft_tokens: int
    acceptance: float
    per_pass: float
    alone: Metric
    plain: Metric
    assisted: Metric
    ratio: Metric
    same: int
    prompts: int
    margin: float | None

    def as_record(self) -> dict[str, Any]:
        """Give all of it as plain numbers, by name."""
        return asdict(self)


def encode(
    prompts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    room: int,
    where: str,
) -> list[torch.Tensor]:
    """Turn prompts into tokens, one tensor (1, tokens) each.

    Args:
        prompts: the texts; empty ones are passed over.
        tokenizer: the teacher's.
        room: most tokens that a prompt may have.
        where: where the prompts come from, for messages.

    Raises:
        UserError: there is no prompt, or one has more tokens than there is room for.
    """
    found = []
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            continue
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        if ids.shape[1] > room:
            raise UserError(
                f"{where}: prompt {number} has {ids.shape[1]} tokens and there is room for {room}: "
                "shorten it, or write fewer with --new-tokens"
            )
        if ids.shape[1]:
            found.append(ids)
    if not found:
        raise UserError(f"{where}: there is no prompt in it; write one a line")
    return found


def check_rollback(config: "PreTrainedConfig", where: str) -> None:
    """Check that tokens can be taken back from a model's cache.

    Args:
        config: the model's.
        where: its folder, for messages.

    Raises:
        UserError: a block has no attention and its window slides: transformers 5.23 makes a cache
            for it that is never filled, and fails to shorten that
            (``DynamicSlidingWindowLayer.crop``).
    """
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    for index, sizes in ChangedBlocks.of(config).narrow.items():
        slides = window is not None and (types is None or types[index] == "sliding_attention")
        if slides and not sizes.heads:
            raise UserError(
                f"{where}: block {index} has no attention and its window slides, and transformers "
                "cannot take back tokens from the cache of such a model; it neither drafts nor is "
                "drafted for"
            )


def measure_drafts(
    teacher: "PreTrainedModel",
    draft: "PreTrainedModel",
    prompts: Sequence[torch.Tensor],
    drafting: Drafting,
    *,
    name: str,
) -> list[Drafted]:
    """Continue prompts greedily with and without a draft, and compare speed and text.

    For each prompt the teacher alone, the draft alone, and both together take turns, every other
    time in the opposite order, after one that is not counted. Reading the prompt is in the times.

    Args:
        teacher: whose text it is.
        draft: a model with the same tokens, on the same device.
        prompts: of :func:`encode`.
        drafting: how.
        name: the draft's.

    Returns:
        one result for each number of drafted tokens
    """
    ways: dict[int | str, Callable[[torch.Tensor], torch.Tensor]] = {
        "teacher": partial(_continue, teacher, drafting.new_tokens),
        "draft": partial(_continue, draft, drafting.new_tokens),
    }
    for count in drafting.draft_tokens:
        ways[count] = partial(
            _continue, teacher, drafting.new_tokens, draft=draft, draft_tokens=count
        )
    runs: dict[int | str, list[_Run]] = {way: [] for way in ways}
    with _unguided(teacher), _unguided(draft), torch.inference_mode():
        for turn in range(-1, len(prompts) * drafting.repeats):
            ids = prompts[max(turn, 0) % len(prompts)].to(teacher.device)
            for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                run = _run(ways[way], ids, teacher)
                if turn >= 0:
                    runs[way].append(run)
        return [
            _summary(runs, teacher, draft, name=name, count=count, prompts=len(prompts))
            for count in drafting.draft_tokens
        ]


@dataclass(frozen=True)
class _Run:
    """One text: its tokens (new ones), seconds, forward passes of the teacher, drafted tokens."""

    prompt: torch.Tensor
    text: torch.Tensor
    seconds: float
    passes: int
    drafted: int

    @property
    def speed(self) -> float:
        return len(self.text) / self.seconds


def _run(
    way: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, teacher: "PreTrainedModel"
) -> _Run:
    with _lengths(teacher) as lengths:
        start = _clock(ids.device)
        text = way(ids)
        seconds = _clock(ids.device) - start
    # The first pass reads the prompt, each other one the token that the last one ended with.
    read = ids.shape[1] + len(lengths) - 1
    return _Run(ids, text, seconds, len(lengths), sum(lengths) - read if lengths else 0)


def _continue(
    model: "PreTrainedModel",
    new_tokens: int,
    ids: torch.Tensor,
    *,
    draft: "PreTrainedModel | None" = None,
    draft_tokens: int = 0,
) -> torch.Tensor:
    """Give the tokens that a model writes after ``ids``, (1, tokens), as (new tokens)."""
    if draft is not None:
        draft.generation_config.num_assistant_tokens = draft_tokens
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        assistant_model=draft,
    )
    return written[0, ids.shape[1] :]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _unguided(model: "PreTrainedModel") -> Iterator[None]:
    """Take away what a model's generation config asks for: end tokens, penalties, sampling."""
    own = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _lengths(model: "PreTrainedModel") -> Iterator[list[int]]:
    """Collect how many tokens each forward pass of a model reads."""
    lengths: list[int] = []

    def note(_: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        lengths.append(ids.shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def _summary(
    runs: Mapping[int | str, Sequence[_Run]],
    teacher: "PreTrainedModel",
    draft: "PreTrainedModel",
    *,
    name: str,
    count: int,
    prompts: int,
) -> Drafted:
    plain, together = runs["teacher"], runs[count]
    # Texts do not depend on the repeat.
    own, texts = plain[:prompts], together[:prompts]
    margins = [
        _margin(teacher, one, other)
        for one, other in zip(own, texts, strict=True)
        if not torch.equal(one.text, other.text)
    ]
    written = sum(len(run.text) for run in texts)
    passes, drafted = sum(run.passes for run in texts), sum(run.drafted for run in texts)
    return Drafted(
        model=name,
        parameters=draft.num_parameters(),
        draft_tokens=count,
        # Each pass adds one token of the teacher's to those that it kept.
        acceptance=(written - passes) / drafted if drafted else 0.0,
        per_pass=written / passes,
        alone=_median([run.speed for run in runs["draft"]]),
        plain=_median([run.speed for run in plain]),
        assisted=_median([run.speed for run in together]),
        ratio=_median([a.speed / b.speed for a, b in zip(together, plain, strict=True)]),
        same=prompts - len(margins),
        prompts=prompts,
        margin=max(margins) if margins else None,
    )


def _median(values: Sequence[float]) -> Metric:
    return Metric(statistics.median(values), None, len(values), min(values), max(values))


def _margin(teacher: "PreTrainedModel", one: _Run, other: _Run) -> float:
    """Give the distance of the two highest logits where one text leaves the other."""
    first = int((one.text != other.text).nonzero()[0])
    ids = torch.cat([one.prompt[0], one.text[:first]])[None]
    highest = teacher(input_ids=ids).logits[0, -1].float().topk(2).values
    return float(highest[0] - highest[1])
