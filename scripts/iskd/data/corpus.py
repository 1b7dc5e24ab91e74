"""Text to tokens: a small tokenizer of our own, and sequences of fixed length."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from iskd.errors import UserError

END_OF_TEXT = "<|endoftext|>"
# Stories that are tokenized together.
_AT_ONCE = 1000


def train_tokenizer(texts: Sequence[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like GPT-2's.

    Args:
        texts: the stories to learn merges from.
        vocabulary: number of entries, the 256 bytes and the end-of-text token included.
        length: the longest sequence its model takes, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def token_sequences(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> torch.Tensor:
    """Join the stories, an end-of-text token after each, and cut into sequences.

    Returns:
        int32 tensor (sequences, length); the incomplete rest at the end is dropped, as in the
        published code.

    Raises:
        UserError: the tokenizer has no end token, or the stories do not fill one sequence.
    """
    return story_sequences(texts, tokenizer, length)[0]


def story_sequences(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the stories as :func:`token_sequences` does, and say whose tokens a sequence holds.

    Returns:
        int32 tensors (sequences, length) and (sequences,): tokens, and the index of the story that
        a sequence's middle token belongs to. A story that fills more than half of a sequence is
        that one.

    Raises:
        UserError: as :func:`token_sequences`.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end token (eos_token); name one in its config")
    # Four bytes a token: a list takes nine times as many, and a corpus may have a billion.
    stream, lengths = array("i"), array("q")
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        for ids in tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            stream.extend(ids)
            stream.append(end)
            lengths.append(len(ids) + 1)
    count = len(stream) // length
    if count == 0:
        raise UserError(
            f"the stories give {len(stream)} tokens, less than one sequence of {length}; "
            f"give more text or lower corpus.block_length"
        )
    sequences = torch.frombuffer(stream, dtype=torch.int32)[: count * length].reshape(count, length)
    ends = torch.frombuffer(lengths, dtype=torch.int64).cumsum(0)
    middles = torch.arange(count) * length + length // 2
    return sequences, torch.searchsorted(ends, middles, right=True).to(torch.int32)


def mixed_sequences(parts: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """Mix sequences of several sources in given shares, every stretch of the result alike.

    None is taken twice: the source that is used up first says how many there are in all. Each
    place goes to the source that is furthest behind its share.

    Args:
        parts: sequences, int (sequences, length), and the share of each source, which add up to 1.

    Returns:
        int (sequences, length); of each source the first ones, in their order

    Raises:
        UserError: a source has not one sequence for its share.
    """
    # Shares such as 0.8 are no binary fractions: 200 sequences must not become 199.
    total = min(int(len(part) / share + 1e-6) for part, share in parts)
    counts = [int(total * share + 1e-6) for _, share in parts]
    if not all(counts):
        raise UserError(
            "the mix leaves a source without a sequence: its text or its share is too small"
        )
    # The k-th of a source's n sequences lies at (k + 1/2) / n of the way.
    places = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts])
    taken = torch.cat([part[:n] for (part, _), n in zip(parts, counts, strict=True)])
    return taken[places.argsort(stable=True)]


def check_length(model: PreTrainedModel, sequences: torch.Tensor) -> None:
    """Check that a model takes sequences as long as these, int (sequences, length).

    Raises:
        UserError: it does not.
    """
    if sequences.shape[1] > model.config.max_position_embeddings:
        raise UserError(
            f"the model takes {model.config.max_position_embeddings} positions, the sequences have "
            f"{sequences.shape[1]}; lower corpus.block_length"
        )


def without_validation(
    sequences: torch.Tensor, validation: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Part what is trained on from what a measured order is measured on.

    The sequences that decide on the order are not trained on, nor are they by a baseline that
    shall see the tokens of such an arm.

    Args:
        sequences: of the corpus, int (sequences, length).
        validation: how many are set aside, from the end.

    Raises:
        UserError: nothing is left to train on.
    """
    if validation >= len(sequences):
        raise UserError(
            f"validation takes {validation} sequences, the corpus has {len(sequences)}; lower "
            f"validation or give more text"
        )
    kept = len(sequences) - validation
    return sequences[:kept], sequences[kept:]


def step_rows(total: int, count: int | None, *, seed: int, first: int, last: int) -> torch.Tensor:
    """Say which sequences the steps ``first`` to ``last`` train on.

    The corpus is brought into one order drawn from the seed, and every step takes the next
    ``count`` sequences of it, from the front again when all have been taken. So steps see fresh
    text as long as there is some, and a baseline that is matched with step k takes the steps 1 to
    k at once.

    Args:
        total: sequences of the corpus.
        count: sequences per step; None for all of them.
        seed: seed of the order.
        first: first step, counted from 1.
        last: last step.

    Returns:
        their places in the corpus, int64 (count * steps,)
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    share = count or total
    return order[torch.arange((first - 1) * share, last * share) % total]


def step_sequences(
    sequences: torch.Tensor, count: int | None, *, seed: int, first: int, last: int
) -> torch.Tensor:
    """Take the sequences that the steps ``first`` to ``last`` train on: see :func:`step_rows`.

    Args:
        sequences: token sequences, int (sequences, length).
        count: sequences per step; None for all of them.
        seed: seed of the order.
        first: first step, counted from 1.
        last: last step.

    Returns:
        int (count * steps, length)
    """
    return sequences[step_rows(len(sequences), count, seed=seed, first=first, last=last)]


def save_sequences(
    sequences: torch.Tensor, path: Path, stories: torch.Tensor | None = None
) -> None:
    """Write token sequences as safetensors, and the story of each where it is known."""
    tensors = {"input_ids": sequences.contiguous()}
    save_file(tensors if stories is None else tensors | {"stories": stories.contiguous()}, path)


def load_sequences(path: Path) -> torch.Tensor:
    """Read what :func:`save_sequences` wrote: an int32 tensor (sequences, length)."""
    return load_file(path)["input_ids"]


def load_stories(path: Path) -> torch.Tensor | None:
    """Read the story of each sequence, int32 (sequences,); None where it was not written."""
    return load_file(path).get("stories")
