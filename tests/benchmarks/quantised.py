"""Two ways of becoming small, one table and one figure: fewer parameters, and 8-bit integers.

    python -m tests.benchmarks.quantised TEACHER MODEL TEXT --figure STEM [--rounds 5]

Of a teacher, a smaller model, and both with int8 weights (`iskd quantise`, needs torchao): bytes of
the weights on disk, tokens per second at batch 1 (decoding with a KV cache, all four in turn), and
the loss on a text, also less the teacher's on the same sequences. The figure is written as
STEM.pdf, .svg and .png, its numbers as STEM.csv.
"""

import argparse
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from iskd.data.corpus import check_length, token_sequences
from iskd.data.model_folder import check_model_folder
from iskd.errors import UserError
from iskd.evaluation.efficiency import DECODE, Load, measure_speed
from iskd.evaluation.heldout import score_sequences
from iskd.evaluation.losses import heldout_metrics
from iskd.paper.figures.canvas import (
    draw_bars,
    draw_points,
    few_ticks,
    finish,
    handle,
    interval_of,
    make_panels,
    save_figure,
)
from iskd.paper.figures.scales import set_values
from iskd.paper.style import REFERENCE_COLOUR, ArmStyle, arm_styles, paper_style
from iskd.runtime.process import set_environment
from tests.benchmarks.timing import machine, spread

TEACHER, SMALLER = "teacher", "smaller"
OWN, INT8 = "own", "int8"
COLUMNS = ["model", "weights", "megabytes", "score", "low", "high", "spread_of"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the figure where one is named."""
    args = _options(arguments)
    logging.disable(logging.WARNING)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    set_environment(threads, network=False)
    import torch

    from iskd.models.folder import load_model, load_tokenizer
    from iskd.serving.quantised import load_quantised, quantise

    torch.set_num_threads(threads)
    for folder in (args.teacher, args.model):
        check_model_folder(folder, "quantised")
    tokenizer = load_tokenizer(args.teacher)
    if load_tokenizer(args.model).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{args.model}: other tokens than the teacher's, so losses are of others")
    text = token_sequences([args.text.read_text(encoding="utf-8")], tokenizer, args.length)
    text = text[: args.sequences].long()
    dtype = getattr(torch, args.precision)
    models, sizes = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for who, folder in ((TEACHER, args.teacher), (SMALLER, args.model)):
            written = Path(temporary) / who
            found = quantise(folder, written)
            models[who, OWN] = load_model(folder, dtype).cpu()
            models[who, INT8] = load_quantised(written, dtype)
            sizes[who, OWN], sizes[who, INT8] = found.before, found.after
    for model in models.values():
        check_length(model, text)
    named = {" ".join(key): model for key, model in models.items()}
    load = Load((1,), args.prompt_tokens, args.new_tokens, args.rounds, warmup=1, seed=1)
    records = [r for r in measure_speed(named, load, 1) if r["phase"] == DECODE]
    rows = []
    print(
        f"{machine()}; {threads} thread(s), computed in {args.precision}; {len(text)} sequences "
        f"of {args.length} tokens, {args.new_tokens} tokens written {args.rounds} times\n\n"
        "| Model | Weights | MB | Tokens/s | to the teacher | Loss (nats/token) "
        "| less the teacher's |\n"
        "|---|---|---|---|---|---|---|"
    )
    speeds = {
        key: [r["tokens"] / r["seconds"] for r in records if r["who"] == " ".join(key)]
        for key in models
    }
    first: list[dict[str, Any]] = []
    for key, model in models.items():
        scores = score_sequences(model, text, batch_size=args.batch_size)
        first = first or scores
        value, low, high = loss_of(scores)
        more = loss_of(
            [{**s, "loss": s["loss"] - t["loss"]} for s, t in zip(scores, first, strict=True)]
        )
        pairs = zip(speeds[key], speeds[TEACHER, OWN], strict=True)
        ratio = spread(one / other for one, other in pairs)
        print(
            f"| {key[0]} | {key[1]} | {sizes[key] / 1e6:.1f} | {spread(speeds[key], 1)} | {ratio} "
            f"| {value:.4f} ({low:.4f} to {high:.4f}) "
            f"| {more[0]:+.4f} ({more[1]:+.4f} to {more[2]:+.4f}) |",
            flush=True,
        )
        rows.append((*key, sizes[key] / 1e6, value, low, high, "items"))
    if args.figure is not None:
        frame = pd.DataFrame(rows, columns=COLUMNS)
        save_figure(quantised_figure(frame), frame, args.figure)


def loss_of(scores: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Give the mean loss of sequences, nats per token, and its 95 % interval over them."""
    loss = heldout_metrics(scores)["loss"]
    low, high = (loss.value if end is None else end for end in (loss.low, loss.high))
    return loss.value, low, high


def quantised_figure(frame: pd.DataFrame) -> Figure:
    """Draw the loss against megabytes: a line for each model, from its own weights to int8.

    Args:
        frame: the columns of ``COLUMNS``; two rows (own, int8) each of ``teacher`` and ``smaller``.
            Bars are 95 % intervals over sequences.
    """
    looks: Mapping[str, ArmStyle] = {
        TEACHER: ArmStyle("Teacher", REFERENCE_COLOUR, "s", (5, 2)),
        SMALLER: replace(arm_styles(["iskd"])["iskd"], label="Smaller model"),
    }
    with paper_style():
        figure, (axes,) = make_panels(1)
        for who, look in looks.items():
            own = frame[frame["model"] == who].sort_values("megabytes")
            draw_bars(axes, own, look.colour, "megabytes")
            draw_points(axes, own, look, "megabytes", joined=True)
            integers = own[own["weights"] == INT8]
            draw_points(axes, integers, look, "megabytes", joined=False, hollow=True)
        axes.set(xlabel="Weights on disk (MB)", ylabel="Loss (nats/token)")
        axes.set_xlim(0, 1.06 * float(frame["megabytes"].max()))
        few_ticks(axes.xaxis)
        set_values(axes, "y", interval_of(frame))
        hollow = replace(looks[SMALLER], label="with int8 weights", colour=REFERENCE_COLOUR)
        handles = [handle(look) for look in looks.values()]
        return finish(figure, [*handles, handle(hollow, joined=False, hollow=True)])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path, help="its Hugging Face folder")
    parser.add_argument("model", type=Path, help="the smaller model's")
    parser.add_argument("text", type=Path, help="a text that neither was trained on")
    parser.add_argument("--figure", type=Path, metavar="STEM", help="path without suffix")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=64, help="of the text, at most")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences at once")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of the sums",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
