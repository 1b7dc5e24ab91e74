"""lm-eval's model around one of ours: importing this module takes seconds.

Prompts, tokenization and metrics are lm-eval's. Three things are ours: the model tells how many
tokens it scored; it works batch after batch, so that a killed evaluation can go on after the last
that is kept; and what an item's texts share is computed once, by
:mod:`iskd.evaluation.shared_prefix`. A model for which that has not been shown to be the same is
scored by lm-eval itself, in the batches that it would make.
"""

import copy
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from iskd.errors import UserError
from iskd.evaluation import shared_prefix
from iskd.evaluation.answers import Scoring
from iskd.evaluation.fused import fused_gelu
from iskd.evaluation.shared_prefix import Text, can_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Measured: tests/benchmarks/evaluation.py.
_CPU_TOKENS = 512

# Texts, tokens of the context, tokens of the continuation: as lm-eval hands requests on.
Request = tuple[tuple[str, str], list[int], list[int]]
# Tokens before the window, tokens of it; lm-eval has None in the place of the texts.
Window = tuple[None, list[int], list[int]]


class ScoredAnswer(tuple[float, bool]):
    """lm-eval's answer (log-likelihood, greedy) that also knows its number of scored tokens.

    It unpacks as the pair that lm-eval's own tasks expect; ours ask it for `tokens`.
    """

    tokens: int

    def __new__(cls, answer: tuple[float, bool], tokens: int) -> "ScoredAnswer":
        """Take over lm-eval's answer."""
        scored = super().__new__(cls, answer)
        scored.tokens = tokens
        return scored


class ScoredText(float):
    """Log-likelihood of a running text that also knows its number of scored tokens."""

    tokens: int

    def __new__(cls, log_likelihood: float, tokens: int) -> "ScoredText":
        """Take over the sum over the text's windows."""
        scored = super().__new__(cls, log_likelihood)
        scored.tokens = tokens
        return scored


class ScoringLM(HFLM):
    """lm-eval's model around one that is already in memory.

    Attributes:
        cut: Requests so far whose context lost tokens on its left to fit into the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        mask: bool = False,
        scoring: Scoring | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: See :func:`iskd.evaluation.harness.evaluate_task`.
            tokenizer: Likewise.
            batch_size: Texts per forward pass.
            mask: Hand the model a mask of ones, as the published code does.
            scoring: Keeps answers, and knows those that were kept before.
        """
        super().__init__(
            pretrained=model,
            # lm-eval sets a padding token; the caller's tokenizer must not change under its hands.
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            # In half precision a sum of log-probabilities would lose most of its digits.
            softmax_dtype="float32",
        )
        self.cut = 0
        self._mask = mask
        self._scoring = scoring or Scoring()
        self._items: list[object] = []
        self._known: dict[tuple[str, bool | None], list[int]] | None = None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[ScoredAnswer]:
        """Score (context, continuation) requests; see lm-eval's HFLM.

        Raises:
            UserError: A continuation alone is longer than the model can read.
            Interrupted: The process was asked to stop; what was scored is kept.
        """
        del disable_tqdm  # the bar is ours, and names model and task
        self._items = [request.doc_id for request in requests]
        alone = [text for context, text in (request.args for request in requests) if not context]
        tokens = self.tokenizer(alone, add_special_tokens=False)["input_ids"] if alone else []
        self._known = {(text, False): own for text, own in zip(alone, tokens, strict=True)}
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._known = None

    @functools.cached_property
    def prefix_token_id(self) -> int:
        """The token before a text without context; lm-eval asks for it twice per text."""
        return int(super().prefix_token_id)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Tokenize as lm-eval does, what an item's options share only once."""
        if self._known is None or left_truncate_len is not None or kwargs:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        key = string, add_special_tokens
        if key not in self._known:
            self._known[key] = super().tok_encode(string, add_special_tokens)
        return self._known[key]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[ScoredAnswer]:
        del disable_tqdm  # a bar for each batch would tell nothing; the log says how far it is
        fitted = [self._fit(*request) for request in requests]
        longest = max((len(context) + len(own) for _, context, own in fitted), default=0)
        packed = not self._mask and can_share(self.model, longest)
        if packed:
            batches, score = self._packed(fitted)
        else:
            batches = batches_of(fitted, self.batch_size)
            scored = super()._loglikelihood_tokens

            def score(batch: list[int]) -> list[list[Any]]:
                chunk = [fitted[index] for index in batch]
                return [list(answer) for answer in scored(chunk, True, override_bs)]

        tokens = json.dumps([[context, continuation] for _, context, continuation in fitted])
        with fused_gelu(self.model) if packed else nullcontext():
            answers = self._scoring(batches, score, tokens.encode())
        places = [index for batch in batches for index in batch]
        by_request = dict(zip(places, answers, strict=True))
        return [
            ScoredAnswer(by_request[index], tokens=len(continuation))
            for index, (_, _, continuation) in enumerate(fitted)
        ]

    def _packed(
        self, requests: Sequence[Request]
    ) -> tuple[list[list[int]], Callable[[list[int]], list[list[Any]]]]:
        """Plan to score requests about one item in one sequence.

        Returns:
            Per batch the places of its requests, and what scores a batch.
        """
        texts = [Text((*context, *own), len(context)) for _, context, own in requests]
        items = self._items if len(self._items) == len(texts) else range(len(texts))
        groups = shared_prefix.groups_of(texts, items)
        packed = [shared_prefix.pack([texts[place] for place in group]) for group in groups]
        # As much as a pass reads of texts that are not packed. A processor gains nothing from more
        # than fits into its cache, and loses what padding costs.
        room = self.batch_size * max((len(text.read) for text in texts), default=1)
        if self.model.device.type == "cpu":
            room = min(room, _CPU_TOKENS)
        plan = {
            tuple(place for group in batch for place in groups[group]): batch
            for batch in shared_prefix.batches_of(packed, room)
        }

        def score(batch: list[int]) -> list[list[Any]]:
            sequences = [packed[group] for group in plan[tuple(batch)]]
            found = shared_prefix.score(self.model, sequences)
            return [list(answer) for answers in found for answer in answers]

        return [list(places) for places in plan], score

    def loglikelihood_rolling(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[ScoredText]:
        """Score running texts, window after window; see lm-eval's HFLM.

        Windows and batches are lm-eval's: each window is as long as the model can read, the first
        one follows the prefix token, and every token is scored once.

        Raises:
            Interrupted: The process was asked to stop; what was scored is kept.
        """
        del disable_tqdm
        windows: list[tuple[int, Window]] = []
        for index, (text,) in enumerate(request.args for request in requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(index, (None, *make_disjoint_window(window))) for window in cut]
        size = self.batch_size
        batches = [windows[start : start + size] for start in range(0, len(windows), size)]
        scored = super()._loglikelihood_tokens

        def score(batch: list[tuple[int, Window]]) -> list[float]:
            chunk = [window for _, window in batch]
            return [answer[0] for answer in scored(chunk, True, len(chunk))]

        tokens = json.dumps([window for _, window in windows])
        answers = self._scoring(batches, score, tokens.encode())
        sums, counts = [0.0] * len(requests), [0] * len(requests)
        for (index, (_, _, continuation)), answer in zip(windows, answers, strict=True):
            sums[index] += answer
            counts[index] += len(continuation)
        return [ScoredText(total, n) for total, n in zip(sums, counts, strict=True)]

    def _fit(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Request:
        """Cut the context as lm-eval would, without its one warning per request."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"a text to score has {len(continuation)} tokens and the model reads at most "
                f"{self.max_length} ({texts[1][:40].strip()!r}...): remove its row or take a "
                "model with more positions"
            )
        self.cut += len(context) > room
        return texts, context[-room:], continuation

    def _model_call(self, inps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self._mask:
            return self.model(input_ids=inps, attention_mask=torch.ones_like(inps)).logits
        return super()._model_call(inps, **kwargs)


def batches_of(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Put requests into batches as lm-eval does, the longest first.

    Requests that differ in their last token only are answered by one text of the forward pass.

    Args:
        requests: What is to be scored.
        batch_size: Texts per forward pass.

    Returns:
        Per batch, the places of its requests.
    """
    texts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, context, continuation) in enumerate(requests):
        texts[*context, *continuation[:-1]].append(index)

    def longest(indices: list[int]) -> tuple[int, list[int]]:
        # Of one text's requests, lm-eval sorts by the one with the longest continuation.
        _, context, continuation = requests[max(indices, key=lambda i: len(requests[i][2]))]
        return -len(context) - len(continuation), context + continuation

    ordered = sorted(texts.values(), key=longest)
    return [
        [index for indices in ordered[start : start + batch_size] for index in indices]
        for start in range(0, len(ordered), batch_size)
    ]
