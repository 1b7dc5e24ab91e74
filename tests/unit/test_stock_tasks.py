"""lm-eval's own tasks, by name: the same numbers as its command line, and clear refusals."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from iskd.data.rows import Row, read_any_rows, write_rows
from iskd.errors import UserError
from iskd.evaluation.catalogue import check_fewshot, find_task, hub_rows
from iskd.evaluation.harness import evaluate_stock_task
from iskd.evaluation.kinds import GOLD
from iskd.evaluation.scores import gold_bits
from tests.unit import test_harness
from tests.unit.test_harness import cbt_row, hellaswag_row, run

model, tokenizer = test_harness.model, test_harness.tokenizer

REAL = os.environ.get("ISKD_REAL_DATA")


def stock(model: Any, tokenizer: Any, name: str, path: Path, **changes: Any) -> Any:
    return evaluate_stock_task(
        model, tokenizer, name, path, **{"batch_size": 4, "seed": 1, **changes}
    )


# --- the cloze, one filled sentence at a time -----------------------------------------------


def test_cbt_on_200_rows_is_a_loop_over_filled_sentences(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [cbt_row(number) for number in range(200)]
    write_rows(tmp_path / "rows.jsonl", rows)
    result = run(model, tokenizer, "cbt_question", tmp_path / "rows.jsonl", batch_size=16)
    choices = []
    for row in rows:
        means = []
        for option in row["options"]:
            text = row["question"].replace("XXXXX", option)
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
            with torch.no_grad():
                # The loss of transformers: the mean over the sentence's tokens.
                means.append(-float(model(ids, labels=ids).loss))
        choices.append(means.index(max(means)))
    assert [sample["choice"]["acc"] for sample in result.samples] == choices
    assert len(set(choices)) > 3


# --- lm-eval's command line -----------------------------------------------------------------

# lm-eval's own task, configured to read a file instead of the hub.
YAML = """\
include: {task}
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    {split}: {file}
training_split: null
validation_split: {split}
test_split: null
fewshot_split: null
"""


def command_line(
    folder: Path, name: str, rows: Path, model: GPT2LMHeadModel, tokenizer: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run `lm-eval run` on a saved folder and local rows; give its numbers and its samples."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "tasks").mkdir()
    text = YAML.format(task=find_task(name).path, name=f"local_{name}", split="rows", file=rows)
    (folder / "tasks/local.yaml").write_text(text)
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32"]
    arguments += ["--tasks", f"local_{name}", "--include_path", str(folder / "tasks")]
    arguments += ["--device", "cpu", "--batch_size", "4", "--log_samples"]
    arguments += ["--output_path", str(folder / "out")]
    switches = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *arguments],
        env={**os.environ, **switches},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    numbers = json.loads(results.read_text())["results"][f"local_{name}"]
    records = sorted(read_any_rows(samples), key=lambda record: record["doc_id"])
    return {k.removesuffix(",none"): v for k, v in numbers.items() if "," in k}, records


def compare_hellaswag(folder: Path, rows: Path, model: GPT2LMHeadModel, tokenizer: Any) -> None:
    """Compare our own kind, and lm-eval's task through our harness, with its command line."""
    numbers, records = command_line(folder, "hellaswag", rows, model, tokenizer)
    own = run(model, tokenizer, "hellaswag", rows, batch_size=4)
    same = stock(model, tokenizer, "hellaswag", rows)
    for result in (own, same):
        for metric in ("acc", "acc_norm"):
            found = result.metrics[metric]
            assert found.value == numbers[metric]
            hits = [float(sample["correct"][metric]) for sample in result.samples]
            assert hits == [record[metric] for record in records]
        for sample, record in zip(result.samples, records, strict=True):
            expected = [float(answer[0]) for answer in record["filtered_resps"]]
            assert sample["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        pairs = [(record, int(record["target"])) for record in records]
        nats = [-float(record["filtered_resps"][right][0]) for record, right in pairs]
        texts = [record["doc"]["choices"][right] for record, right in pairs]
        bits = sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
        assert result.metrics[GOLD].value == pytest.approx(bits, rel=1e-6)
        assert sum(gold_bits(result.samples)) / len(pairs) == pytest.approx(bits, rel=1e-6)
    assert 0 < own.metrics["acc"].value < 1


def test_hellaswag_equals_lm_evals_command_line(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{**hellaswag_row(n), "label": str(n % 4)} for n in range(40)])
    compare_hellaswag(tmp_path, rows, model, tokenizer)


@pytest.mark.skipif(REAL is None, reason="ISKD_REAL_DATA names no folder with real questions")
def test_real_hellaswag_equals_lm_evals_command_line(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    assert REAL is not None
    real = read_any_rows(Path(REAL) / "hellaswag_validation.jsonl")
    # This model reads 128 tokens.
    short = [r for r in real if len(r["ctx"] + max(r["endings"], key=len)) < 180][:60]
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, short)
    compare_hellaswag(tmp_path, rows, model, tokenizer)


# --- other types of task --------------------------------------------------------------------


def lambada_rows() -> list[Row]:
    return [{"text": f"The fox was by the {w} and so was the {w}"} for w in ("pond", "oak", "mill")]


def test_the_last_word_is_scored_by_hand(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, lambada_rows())
    result = stock(model, tokenizer, "lambada_openai", rows)
    scored = [
        test_harness.log_likelihood(model, tokenizer, context, f" {word}")
        for context, word in (row["text"].rsplit(" ", 1) for row in lambada_rows())
    ]
    wanted = math.exp(-sum(ll for ll, _ in scored) / len(scored))
    assert result.metrics["perplexity"].value == pytest.approx(wanted, rel=1e-4)
    assert result.chance is None
    assert set(result.samples[0]["correct"]) == {"acc"}


def test_a_running_text_is_scored_by_hand(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    pages = [" ".join(["The fox was by the pond ."] * n) for n in (1, 3)]
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{"page": page} for page in pages])
    result = stock(model, tokenizer, "wikitext", rows)
    texts = [page.replace(" .", ".") for page in pages]
    losses, words = 0.0, 0
    for text, page in zip(texts, pages, strict=True):
        found, _ = test_harness.log_likelihood(model, tokenizer, "", text)
        losses -= found
        words += len(page.split())
    assert result.metrics["word_perplexity"].value == pytest.approx(
        math.exp(losses / words), rel=0.05
    )
    bits = result.metrics["bits_per_byte"].value
    assert result.metrics["byte_perplexity"].value == pytest.approx(2**bits)


def test_examples_stand_in_the_prompt(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    def question(number: int) -> Row:
        words = test_harness.WORDS[number : number + 3]
        choices = {"text": words, "label": ["A", "B", "C"]}
        return {"question": f"Which {number}", "choices": choices, "answerKey": "ABC"[number % 3]}

    rows, examples = tmp_path / "rows.jsonl", tmp_path / "examples.jsonl"
    write_rows(rows, [question(n) for n in range(6)])
    write_rows(examples, [question(n) for n in range(6, 12)])
    bare = stock(model, tokenizer, "arc_easy", rows)
    shown = stock(model, tokenizer, "arc_easy", rows, examples_path=examples, fewshot=2)
    assert bare.chance == pytest.approx(1 / 3)
    assert [s["token_counts"] for s in bare.samples] == [s["token_counts"] for s in shown.samples]
    assert bare.samples[0]["log_likelihoods"] != shown.samples[0]["log_likelihoods"]
    again = stock(model, tokenizer, "arc_easy", rows, examples_path=examples, fewshot=2)
    assert again == shown


def test_rows_of_another_task_are_refused(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{"text": "Nothing"}])
    with pytest.raises(UserError, match="do not fit lm-eval's task arc_easy"):
        stock(model, tokenizer, "arc_easy", rows)


# --- the catalogue --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "headline", "dataset"),
    [
        ("hellaswag", "multiple_choice", "acc_norm", "Rowan/hellaswag"),
        ("lambada_openai", "loglikelihood", "acc", "EleutherAI/lambada_openai"),
        ("arc_easy", "multiple_choice", "acc_norm", "allenai/ai2_arc"),
        ("piqa", "multiple_choice", "acc_norm", "baber/piqa"),
        ("winogrande", "multiple_choice", "acc", "allenai/winogrande"),
        (
            "wikitext",
            "loglikelihood_rolling",
            "word_perplexity",
            "EleutherAI/wikitext_document_level",
        ),
    ],
)
def test_tasks_are_described_without_importing_lm_eval(
    name: str, kind: str, headline: str, dataset: str
) -> None:
    task = find_task(name)
    assert (task.output_type, task.headline) == (kind, headline)
    assert hub_rows(task).dataset == dataset
    assert not hub_rows(task).options


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arc_eazy", "did you mean arc_easy"),
        ("ai2_arc", "name its tasks: arc_challenge, arc_easy"),
        ("mmlu", "is a group"),
        ("gsm8k", "output type generate_until"),
    ],
)
def test_what_cannot_be_run_is_reported(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_task(name)


def test_examples_need_a_split_of_their_own() -> None:
    check_fewshot(find_task("arc_easy"), 5)
    with pytest.raises(UserError, match="takes no examples"):
        check_fewshot(find_task("wikitext"), 1)
