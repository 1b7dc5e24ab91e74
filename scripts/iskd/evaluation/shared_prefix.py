"""Texts that begin alike, scored in one sequence: what they share is computed once.

The ten options of a cloze share all but a word and what follows it, four endings their whole
context. Such texts are packed into one sequence: the shared beginning, then each text's own ending.
Every token keeps the position that it has in its own text, and a mask lets it see the beginning and
its own ending only, so that it gets what it would get alone. Logits are computed only where a token
is asked for. Other software shares beginnings by a cache of keys and values, pass after pass; here
one pass is enough, and nothing is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import is_published

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens whose logits are in memory at a time. More gain nothing in the matrix product, and a
# processor then waits for new memory; measured with 6,000 and 50,257 entries in the vocabulary.
_AT_A_TIME = 256


@dataclass(frozen=True)
class Text:
    """One text to score.

    Attributes:
        tokens: all of it, two at least.
        context: how many tokens at its beginning are given; the others are scored.
    """

    tokens: tuple[int, ...]
    context: int

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: nothing is predicted after the last token."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Packed:
    """Texts in one sequence.

    Attributes:
        tokens: the shared beginning, then each text's own ending.
        positions: of each token, in its own text.
        owners: of each token: -1 of the beginning, otherwise the place of its text.
        targets: (place in ``tokens`` of the logits, token to score, place of the text).
    """

    tokens: list[int]
    positions: list[int]
    owners: list[int]
    targets: list[tuple[int, int, int]]


def can_share(model: "PreTrainedModel", longest: int) -> bool:
    """Tell whether a model sees through a mask what it is meant to see.

    It does where it is of a family that is tested for it, attends to all that came before, and has
    no defect that depends on masks.

    Args:
        model: the model.
        longest: tokens of the longest text.
    """
    try:
        family_of(model.config)
    except UserError:
        return False
    window = getattr(model.config, "sliding_window", None)
    return not is_published(model.config) and (window is None or window >= longest)


def groups_of(texts: Sequence[Text], items: Sequence[object]) -> list[list[int]]:
    """Say which texts are to be packed together, so that little is computed.

    Args:
        texts: what is to be scored.
        items: what each text is about; only neighbours about the same are packed together.

    Returns:
        Places of texts, group by group, in their order.
    """
    groups: list[list[int]] = []
    shared = 0
    for place, text in enumerate(texts):
        if groups and items[groups[-1][0]] == items[place]:
            members = len(groups[-1])
            common = _common(texts[groups[-1][0]].read[:shared], text.read)
            # With it, all share less; without it, its own beginning is computed again.
            if members * common > (members - 1) * shared:
                groups[-1].append(place)
                shared = common
                continue
        groups.append([place])
        shared = len(text.read)
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens at the beginning that two texts have in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def pack(texts: Sequence[Text]) -> Packed:
    """Put texts into one sequence behind what all of them share."""
    first = texts[0].read
    shared = min(_common(first, text.read) for text in texts)
    packed = Packed(list(first[:shared]), list(range(shared)), [-1] * shared, [])
    for number, text in enumerate(texts):
        # Where the tokens of its own ending will lie, counted as if the text stood alone.
        moved = len(packed.tokens) - shared
        ending = text.read[shared:]
        packed.tokens.extend(ending)
        packed.positions.extend(range(shared, len(text.read)))
        packed.owners.extend([number] * len(ending))
        packed.targets.extend(
            (place if place < shared else place + moved, text.tokens[place + 1], number)
            for place in range(text.context - 1, len(text.read))
        )
    return packed


def batches_of(packed: Sequence[Packed], tokens: int) -> list[list[int]]:
    """Put packed sequences of like lengths into batches, the longest first.

    Args:
        packed: the sequences.
        tokens: padding included, what a forward pass may read; one sequence always may be read.

    Returns:
        Per batch, the places of its sequences.
    """
    ordered = sorted(range(len(packed)), key=lambda n: (-len(packed[n].tokens), packed[n].tokens))
    batches: list[list[int]] = []
    for number in ordered:
        if batches and (len(batches[-1]) + 1) * len(packed[batches[-1][0]].tokens) <= tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def score(model: "PreTrainedModel", batch: Sequence[Packed]) -> list[list[tuple[float, bool]]]:
    """Score packed sequences in one forward pass.

    Args:
        model: a model that :func:`can_share`, in evaluation mode.
        batch: B sequences; shorter ones are padded on the right.

    Returns:
        Per sequence and text: the sum of the log-likelihoods of the scored tokens, in nats, and
        whether each of them is the likeliest.
    """
    length = max(len(packed.tokens) for packed in batch)
    device = model.device

    def padded(lists: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        rows = [[*row, *[filling] * (length - len(row))] for row in lists]
        return torch.tensor(rows, device=device)

    given: dict[str, torch.Tensor] = {}
    # Alone in its sequence, a text is read as any other; padding comes after it.
    if any(owner >= 0 for packed in batch for owner in packed.owners):
        owners = padded([packed.owners for packed in batch], -2)
        given["attention_mask"] = _mask(owners, model.dtype)
        given["position_ids"] = padded([packed.positions for packed in batch], 0)
    with torch.inference_mode():
        tokens = padded([packed.tokens for packed in batch], 0)
        hidden = model.base_model(input_ids=tokens, use_cache=False, **given).last_hidden_state
        # Shared tokens can be targets of several texts: each place once, with all its targets.
        places = {place: n for n, place in enumerate(sorted(_places(batch)))}
        targets = sorted(
            {
                (places[row, place], token)
                for row, packed in enumerate(batch)
                for place, token, _ in packed.targets
            }
        )
        rows, columns = (list(numbers) for numbers in zip(*places, strict=True))
        scores = _log_likelihoods(
            model, hidden[rows, columns], torch.tensor(targets, device=device)
        )
    answers = dict(zip(targets, scores, strict=True))
    return [
        _summed(
            [(text, *answers[places[row, place], token]) for place, token, text in packed.targets]
        )
        for row, packed in enumerate(batch)
    ]


def _places(batch: Sequence[Packed]) -> set[tuple[int, int]]:
    """Give the places, (sequence, token), whose logits score the targets."""
    return {(row, place) for row, packed in enumerate(batch) for place, _, _ in packed.targets}


def _summed(answers: Sequence[tuple[int, float, bool]]) -> list[tuple[float, bool]]:
    """Sum up the answers about each text: (its place, log-likelihood, whether the likeliest)."""
    sums: dict[int, tuple[float, bool]] = {}
    for text, value, likeliest in answers:
        total, greedy = sums.get(text, (0.0, True))
        sums[text] = (total + value, greedy and likeliest)
    return [sums[text] for text in range(len(sums))]


def _mask(owners: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Let each token see what came before in its own text: (B, L) -> (B, 1, L, L), additive."""
    length = owners.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    keys, queries = owners[:, None, :], owners[:, :, None]
    seen = before & ((keys == -1) | (keys == queries))
    closed = torch.zeros(seen.shape, dtype=dtype, device=owners.device)
    return closed.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _log_likelihoods(
    model: "PreTrainedModel", hidden: torch.Tensor, targets: torch.Tensor
) -> list[tuple[float, bool]]:
    """Give each token's log-likelihood, and whether it is the likeliest.

    Args:
        model: whose output embeddings (V, H) give the logits.
        hidden: (P, H), at P places.
        targets: (N, 2), a place and the token to score there, in the order of the places.

    Returns:
        N pairs, log-likelihoods in nats.
    """
    head: Callable[[torch.Tensor], torch.Tensor] = model.get_output_embeddings()
    found: list[float] = []
    likeliest: list[bool] = []
    bounds = torch.arange(0, len(hidden) + _AT_A_TIME, _AT_A_TIME, device=targets.device)
    cuts = torch.searchsorted(targets[:, 0].contiguous(), bounds).diff().tolist()
    for part, questions in zip(hidden.split(_AT_A_TIME), targets.split(cuts), strict=True):
        places, tokens = questions[:, 0] % _AT_A_TIME, questions[:, 1]
        # In half precision a sum of log-probabilities would lose most of its digits.
        logits = head(part).float()
        own = logits[places, tokens]
        highest = logits.amax(1)
        likeliest += _is_likeliest(logits, highest, own, places, tokens)
        # What logsumexp does, without its second search for the highest and in the same memory.
        total = logits.sub_(highest[:, None]).exp_().sum(1).log_().add_(highest)
        found += (own - total[places]).tolist()
    return list(zip(found, likeliest, strict=True))


def _is_likeliest(
    logits: torch.Tensor,
    highest: torch.Tensor,
    own: torch.Tensor,
    places: torch.Tensor,
    tokens: torch.Tensor,
) -> list[bool]:
    """Tell of each token whether it is the one that argmax gives.

    Searching for the highest value's place takes several times as long as for the value, so the
    place is searched for only where the value is the token's own: of equal ones the first counts.

    Args:
        logits: (P, V).
        highest: (P), the highest of each place.
        own: (N), the logit of each scored token.
        places: (N), its place.
        tokens: (N), which it is.
    """
    # Not "==": a broken model's NaN is nobody's equal, and argmax takes it for the highest.
    likely = ~(own < highest[places])
    best = logits[places[likely]].argmax(1)
    likely[likely.clone()] = best == tokens[likely]
    flags: list[bool] = likely.tolist()
    return flags
