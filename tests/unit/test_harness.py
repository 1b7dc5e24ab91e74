"""The harness against recomputations that use neither lm-eval nor batches."""

import copy
import json
import logging
import math
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from iskd.data.rows import Row, write_rows
from iskd.errors import UserError
from iskd.evaluation.harness import TaskResult, evaluate_task
from iskd.evaluation.kinds import GOLD, KINDS

SCRIPTS = Path(__file__).parents[2] / "scripts"
TASKS = SCRIPTS / "iskd" / "evaluation" / "tasks"
TEXT = """
    fox hen barn kettle marmalade owl wheelbarrow pond oak lighthouse cart lamb gooseberries
    tin grandfather mill
"""
WORDS = TEXT.split()
QUESTIONS = ["XXXXX stood there .", "Then the XXXXX was gone .", "She liked the XXXXX"]


def cbt_row(number: int) -> Row:
    options = [WORDS[(number * 5 + 3 * step) % 16] for step in range(10)]
    return {
        "sentences": [
            f"The {WORDS[(number + step) % 16]} was by the {WORDS[(number * step) % 16]} ."
            for step in range(4)
        ],
        "question": QUESTIONS[number % 3],
        "answer": options[(number * 7) % 10],
        "options": options,
        "source": number,
    }


def hellaswag_row(number: int) -> Row:
    return {
        "activity_label": "Keeping bees",
        "ctx_a": f"A woman opens the {WORDS[number % 16]}.",
        "ctx_b": ["she", "", "a Neighbour"][number % 3],
        "endings": [
            f"{'slowly ' * ((number + ending) % 4)}lifts the {WORDS[(number * ending) % 16]}."
            for ending in range(4)
        ],
        "label": [number % 4, str(number % 4)][number % 2],
    }


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [json.dumps(cbt_row(number)) for number in range(8)]
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")  # noqa: S106


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    # A wide start makes the options' scores differ by far more than the tolerance.
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [cbt_row(number) for number in range(24)])
    return path


@pytest.fixture
def hellaswag_path(tmp_path: Path) -> Path:
    path = tmp_path / "hellaswag.jsonl"
    write_rows(path, [hellaswag_row(number) for number in range(24)])
    return path


def run(model: Any, tokenizer: Any, kind: str, path: Path, **changes: Any) -> TaskResult:
    return evaluate_task(model, tokenizer, kind, path, **{"batch_size": 5, "seed": 1, **changes})


def log_likelihood(
    model: GPT2LMHeadModel, tokenizer: Any, context: str, text: str
) -> tuple[float, int]:
    """Score `text` after `context`, alone in its batch: (nats, number of scored tokens)."""
    if context:
        whole = tokenizer.encode(context + text)
        scored = len(whole) - len(tokenizer.encode(context))
    else:
        whole = [tokenizer.eos_token_id, *tokenizer.encode(text)]
        scored = len(whole) - 1
    ids = torch.tensor(whole[-(model.config.n_positions + 1) :])
    with torch.no_grad():
        log_probs = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    picked = [float(log_probs[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    return sum(picked[-scored:]), scored


def check_against_recomputation(
    result: TaskResult, texts: list[list[tuple[str, str]]], targets: list[int], scorer: Any
) -> None:
    """Compare scores, counts, choices and metrics; `texts` holds (context, text) per option."""
    rules: dict[str, Callable[[float, int, str], float]] = {
        "sum": lambda ll, count, text: ll,
        "token_mean": lambda ll, count, text: ll / count,
        "char_mean": lambda ll, count, text: ll / len(text.removeprefix(" ")),
    }
    right: dict[str, list[bool]] = {name: [] for name in KINDS[result.kind].metrics}
    for sample, pairs, target in zip(result.samples, texts, targets, strict=True):
        scored = [scorer(*pair) for pair in pairs]
        assert sample["log_likelihoods"] == pytest.approx([ll for ll, _ in scored], abs=1e-4)
        assert sample["token_counts"] == [count for _, count in scored]
        assert sample["target"] == target
        for name, rule in KINDS[result.kind].metrics.items():
            values = [
                rules[rule](ll, count, text)
                for (ll, count), (_, text) in zip(scored, pairs, strict=True)
            ]
            best = max(range(len(values)), key=values.__getitem__)
            assert sample["choice"][name] == best
            assert sample["correct"][name] is (best == target)
            right[name].append(best == target)
    assert set(result.metrics) == {*right, GOLD}
    for name, hits in right.items():
        n, share = len(hits), sum(hits) / len(hits)
        metric = result.metrics[name]
        assert metric.n == n
        assert metric.value == pytest.approx(share)
        assert metric.stderr == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))


def cbt_pairs(row: Row, with_context: bool) -> list[tuple[str, str]]:
    filled = [row["question"].replace("XXXXX", option) for option in row["options"]]
    if with_context:
        return [(" ".join(row["sentences"]), f" {text}") for text in filled]
    return [("", text) for text in filled]


@pytest.mark.parametrize("kind", ["cbt_question", "cbt_context"])
def test_cbt_agrees_with_one_option_at_a_time(
    kind: str, model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path
) -> None:
    rows = [cbt_row(number) for number in range(24)]
    result = run(model, tokenizer, kind, rows_path)
    check_against_recomputation(
        result,
        [cbt_pairs(row, kind == "cbt_context") for row in rows],
        [row["options"].index(row["answer"]) for row in rows],
        lambda context, text: log_likelihood(model, tokenizer, context, text),
    )
    assert result.chance == pytest.approx(0.1)
    assert result.cut == 0
    assert [sample["index"] for sample in result.samples] == list(range(24))
    # The two rules must have had something to disagree on.
    picks = [tuple(sample["choice"].values()) for sample in result.samples]
    assert any(one != other for one, other in picks)


def test_hellaswag_agrees_with_one_ending_at_a_time(
    model: GPT2LMHeadModel, tokenizer: Any, hellaswag_path: Path
) -> None:
    rows = [hellaswag_row(number) for number in range(24)]
    result = run(model, tokenizer, "hellaswag", hellaswag_path)
    pairs = [
        [
            (
                f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip(),
                f" {ending}",
            )
            for ending in row["endings"]
        ]
        for row in rows
    ]
    check_against_recomputation(
        result,
        pairs,
        [int(row["label"]) for row in rows],
        lambda context, text: log_likelihood(model, tokenizer, context, text),
    )
    assert result.chance == pytest.approx(0.25)
    assert any(s["choice"]["acc"] != s["choice"]["acc_norm"] for s in result.samples)


def test_hellaswag_labels_of_either_type_count_alike(
    model: GPT2LMHeadModel, tokenizer: Any, tmp_path: Path
) -> None:
    results = []
    for cast in (int, str):
        path = tmp_path / "rows.jsonl"
        rows = [hellaswag_row(number) for number in range(6)]
        write_rows(path, [{**row, "label": cast(row["label"])} for row in rows])
        results.append(run(model, tokenizer, "hellaswag", path))
    assert results[0] == results[1]


def test_standard_error_is_lm_evals(
    model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path
) -> None:
    from lm_eval.api.metrics import mean, mean_stderr

    result = run(model, tokenizer, "cbt_question", rows_path)
    for name in KINDS["cbt_question"].metrics:
        metric = result.metrics[name]
        hits = [float(sample["correct"][name]) for sample in result.samples]
        assert metric.value == pytest.approx(mean(hits))
        assert metric.stderr == pytest.approx(mean_stderr(hits))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_inputs_give_the_same_bytes(
    kind: str, model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path, hellaswag_path: Path
) -> None:
    path = hellaswag_path if kind == "hellaswag" else rows_path
    state = torch.random.get_rng_state()
    first = run(model, tokenizer, kind, path)
    again = run(model, tokenizer, kind, path, seed=99)
    assert json.dumps(asdict(first)) == json.dumps(asdict(again))
    assert tokenizer.pad_token is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert KINDS[kind].headline in first.metrics


def test_batches_change_no_more_than_rounding(
    model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path
) -> None:
    alone = run(model, tokenizer, "cbt_context", rows_path, batch_size=1)
    together = run(model, tokenizer, "cbt_context", rows_path, batch_size=64)
    for one, other in zip(alone.samples, together.samples, strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
        assert one["choice"] == other["choice"]


def test_one_row_has_no_standard_error(
    model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "one.jsonl"
    alone.write_bytes(rows_path.read_bytes().splitlines(keepends=True)[0])
    one = run(model, tokenizer, "cbt_question", alone)
    assert (one.metrics["acc"].stderr, one.metrics["acc"].n) == (None, 1)


def test_long_contexts_lose_their_left_and_it_is_logged_once(
    tokenizer: Any, rows_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    short = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=40,
            n_embd=16,
            n_layer=1,
            n_head=1,
            initializer_range=0.4,
        )
    ).eval()
    rows = [cbt_row(number) for number in range(24)]
    with caplog.at_level(logging.WARNING):
        result = run(short, tokenizer, "cbt_context", rows_path)
    check_against_recomputation(
        result,
        [cbt_pairs(row, with_context=True) for row in rows],
        [row["options"].index(row["answer"]) for row in rows],
        lambda context, text: log_likelihood(short, tokenizer, context, text),
    )
    cut = sum(
        len(tokenizer.encode(context + text)) > 41
        for row in rows
        for context, text in cbt_pairs(row, with_context=True)
    )
    assert 0 < result.cut == cut
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert f"{cut} of 240 texts were longer than the model's 40 tokens" in warnings[0]


def test_a_text_longer_than_the_model_is_a_users_mistake(tokenizer: Any, rows_path: Path) -> None:
    tiny = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=4, n_embd=8, n_layer=1, n_head=1)
    )
    with pytest.raises(UserError, match="the model reads at most 4"):
        run(tiny, tokenizer, "cbt_question", rows_path)


def test_dropout_is_off_and_the_mode_is_given_back(
    model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path
) -> None:
    calm = run(model, tokenizer, "cbt_question", rows_path)
    try:
        model.train()
        assert run(model, tokenizer, "cbt_question", rows_path) == calm
        assert model.training
    finally:
        model.eval()


def test_half_precision_sums_are_not_rounded_to_halves(
    model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path
) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    result = run(half, tokenizer, "cbt_question", rows_path)
    scores = [score for sample in result.samples for score in sample["log_likelihoods"]]
    rounded = torch.tensor(scores).to(torch.bfloat16).float().tolist()
    assert sum(one != other for one, other in zip(scores, rounded, strict=True)) > len(scores) / 2


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forbid connections; return the folder where a cache or a temporary file would show."""
    folder = tmp_path / "sealed"
    folder.mkdir()

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_an_evaluation_uses_no_network_and_no_cache_and_is_quiet(
    model: GPT2LMHeadModel,
    tokenizer: Any,
    hellaswag_path: Path,
    sealed: Path,
    request: pytest.FixtureRequest,
) -> None:
    capfd = request.getfixturevalue("capfd")
    caplog = request.getfixturevalue("caplog")
    with caplog.at_level(logging.INFO):
        run(model, tokenizer, "hellaswag", hellaswag_path)
    assert list(sealed.rglob("*")) == []
    assert capfd.readouterr() == ("", "")
    assert {record.name.split(".")[0] for record in caplog.records} == {"iskd"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("hellaswag: 24 rows")
    assert any(message.endswith("of 96 texts scored") for message in messages)
    assert len(messages) <= 12


def test_users_mistakes_are_named(model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path) -> None:
    with pytest.raises(UserError, match="task kind 'cbt' is not known"):
        run(model, tokenizer, "cbt", rows_path)
    with pytest.raises(UserError, match="batch_size is 0"):
        run(model, tokenizer, "cbt_question", rows_path, batch_size=0)
    nameless = copy.deepcopy(tokenizer)
    nameless.eos_token = None
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        run(model, nameless, "cbt_question", rows_path)
    bigger = copy.deepcopy(tokenizer)
    bigger.add_tokens(["<one>"])
    with pytest.raises(UserError, match="give the model its own tokenizer"):
        run(model, bigger, "cbt_question", rows_path)


@pytest.mark.parametrize("kind", ["cbt_question", "cbt_context"])
def test_the_yaml_tasks_serve_lm_evals_own_model(
    kind: str, model: GPT2LMHeadModel, tokenizer: Any, rows_path: Path, tmp_path: Path
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    ours = run(model, tokenizer, kind, rows_path)

    def stock(metadata: dict[str, Any]) -> dict[str, Any]:
        manager = TaskManager(include_defaults=False, include_path=TASKS, metadata=metadata)
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=5)
        return simple_evaluate(lm, tasks=[kind], task_manager=manager, bootstrap_iters=10)

    rows = {"rows": str(rows_path)}
    theirs = stock({**rows, "tokenizer": str(tmp_path / "tokenizer")})
    for name in KINDS[kind].metrics:
        metric = ours.metrics[name]
        assert theirs["results"][kind][f"{name},none"] == pytest.approx(metric.value)
        assert theirs["results"][kind][f"{name}_stderr,none"] == pytest.approx(metric.stderr)
    counts = [record["doc"]["token_counts"] for record in theirs["samples"][kind]]
    assert counts == [sample["token_counts"] for sample in ours.samples]
    with pytest.raises(ValueError, match="name its tokenizer"):
        stock(rows)


def test_kinds_and_harness_are_cheap_to_import() -> None:
    code = (
        "import sys, iskd.evaluation.kinds, iskd.evaluation.harness, iskd.data.cloze\n"
        "heavy = {'torch', 'lm_eval', 'transformers', 'datasets', 'numpy', 'snakemake'}\n"
        "sys.exit(f'{sorted(heavy & set(sys.modules))}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_kinds_agree_with_the_yaml_files_and_lm_eval() -> None:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    stock = Path(lm_eval.tasks.__file__).parent / "hellaswag"
    index = TaskManager(include_defaults=False, include_path=[TASKS, stock]).task_index
    assert set(KINDS) <= set(index)
    for kind in KINDS.values():
        config = index[kind.name].cfg
        assert config is not None
        assert {metric["metric"] for metric in config["metric_list"]} == set(kind.metrics)
        assert config.get("test_split") == kind.split or config["validation_split"] == kind.split
        assert kind.headline in kind.metrics


def test_tokens_made_ahead_are_lm_evals_own(
    model: GPT2LMHeadModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from iskd.evaluation.lm import ScoringLM

    pairs = [
        ("", "fox hen"),
        ("", "fox hen"),
        ("fox  ", "hen barn"),
        ("fox ", " hen"),
        ("", " hen"),
        (f"{tokenizer.eos_token} fox", " hen"),
        ("fox hen", " barn"),
        ("fox hen", " kettle"),
    ]
    kinds = {"request_type": "loglikelihood", "doc": {}}
    instances = [Instance(**kinds, arguments=pair, idx=n) for n, pair in enumerate(pairs)]
    found: list[Any] = []
    monkeypatch.setattr(
        HFLM, "_loglikelihood_tokens", lambda _, requests, **_named: found.append(requests)
    )
    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2).loglikelihood(instances, True)
    lm = ScoringLM(model, tokenizer, 2)
    monkeypatch.setattr(
        ScoringLM, "_loglikelihood_tokens", lambda _, requests, **_named: found.append(requests)
    )
    lm.loglikelihood(instances, True)
    assert found[0] == found[1]
    # Nothing is kept for what comes afterwards.
    assert lm._known is None
