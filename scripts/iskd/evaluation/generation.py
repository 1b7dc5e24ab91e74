"""What a model writes: continuations of given beginnings, how varied, how likely to its teacher."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from iskd.data.rows import sample_indices
from iskd.evaluation import statistics
from iskd.evaluation.metric import Metric, metric_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 6
"""Continuations that are printed in the report."""


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn.

    Attributes:
        new_tokens: tokens of each.
        temperature: of the distribution; 0 takes the likeliest token each time.
        top_p: draw from the likeliest tokens that have this probability together.
        seed: seed of the draw.
    """

    new_tokens: int
    temperature: float
    top_p: float
    seed: int


def draw_prompts(sequences: torch.Tensor, count: int, tokens: int, seed: int) -> torch.Tensor:
    """Draw the beginnings of held-out sequences: (N, L) -> (min(count, N), tokens).

    Args:
        sequences: token ids.
        count: how many; all of them where there are no more.
        tokens: tokens of a beginning.
        seed: seed of the draw.
    """
    return sequences[sample_indices(len(sequences), count, seed), :tokens].long()


def continue_prompts(
    model: "PreTrainedModel",
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: torch.Tensor,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """Let a model continue prompts, with its KV cache, and ask its teacher about the outcome.

    The end token does not stop a continuation: the corpus goes on after it with the next story. All
    prompts are continued in one batch, and every call draws the same numbers.

    Args:
        model: A causal language model; its generation config is replaced.
        teacher: Of the same vocabulary; may be the model itself.
        tokenizer: Turns tokens into text for readers.
        prompts: Token ids, (N, P).
        sampling: How continuations are drawn.

    Returns:
        per prompt ``index``, ``prompt`` and ``continuation`` (texts), ``tokens`` (of the
        continuation) and ``teacher_loss`` (its mean cross-entropy under the teacher, nats/token)
    """
    from transformers import GenerationConfig

    greedy = sampling.temperature == 0
    drawing = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.new_tokens,
        do_sample=not greedy,
        # Only by default does the library cut to the 50 likeliest.
        **({} if greedy else {"top_k": 0, **drawing}),
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
    )
    model.eval()
    teacher.eval()
    prompts = prompts.to(model.device)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        whole = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts))
        logits = teacher(input_ids=whole.to(teacher.device), use_cache=False).logits
    start = prompts.shape[1]
    samples: list[dict[str, Any]] = []
    for index, (row, predicted) in enumerate(zip(whole, logits, strict=True)):
        new = row[start:].to(predicted.device)
        losses = functional.cross_entropy(predicted[start - 1 : -1].float(), new, reduction="none")
        samples.append(
            {
                "index": index,
                "prompt": tokenizer.decode(row[:start]),
                "continuation": tokenizer.decode(new),
                "tokens": new.tolist(),
                "teacher_loss": float(losses.cpu().double().mean()),
            }
        )
    return samples


def generation_metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Measure the records of :func:`continue_prompts`.

    distinct_n is the number of different n-grams of all continuations over that of their n-grams
    (Li et al. 2016, arXiv 1510.03055); it falls with the length and number of continuations, so
    compare only numbers of one study. It is no mean over items, and has no error here.
    """
    metrics: dict[str, Metric] = {}
    for n in (1, 2, 3):
        grams = [
            tuple(sample["tokens"][i : i + n])
            for sample in samples
            for i in range(len(sample["tokens"]) - n + 1)
        ]
        metrics[f"distinct_{n}"] = Metric(len(set(grams)) / len(grams), None, len(grams))
    counts = [len(sample["tokens"]) for sample in samples]
    losses = [s["teacher_loss"] * count for s, count in zip(samples, counts, strict=True)]
    return metrics | {"teacher_loss": metric_of(statistics.ratio(losses, counts))}


def reading_page(samples: Sequence[Mapping[str, Any]], title: str) -> str:
    """Print the first continuations as a page, each behind the beginning that it continues."""
    parts = []
    for sample in samples[:SHOWN]:
        prompt, text = (html.escape(_visible(sample[key])) for key in ("prompt", "continuation"))
        loss = f"loss under the teacher: {sample['teacher_loss']:.2f} nats/token"
        parts.append(f"<p><b>{prompt}</b>{text}<br><small>{loss}</small></p>")
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em; max-width: 50em; }"
        f"</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _visible(text: str) -> str:
    """Show what a page cannot: line ends, and bytes that are no character."""
    return "".join(c if c.isprintable() else " " for c in text.replace("\n", " ⏎ "))
