"""A study's config: its defaults, and a one-line message with the key for every mistake."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from iskd.config import check_data_files, data_folder, json_schema, load_study
from iskd.config.model_defaults import fill_in
from iskd.config.schema import HubTeacher, PretrainedHere, Study
from iskd.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "config" / "tiny.yaml").read_text())
# The control stands in every real study; running the smallest one is shorter without it.
TINY["arms"]["teacher_tuned"] = {"method": "teacher_tuned"}
HUB_TASK = {"source": "hub", "kind": "hellaswag", "dataset": "a/b", "split": "validation"}
CLAIM = {"teacher": "toy", "task": "hellaswag", "metric": "acc", "source": "a paper"} | {
    "reduction": 0.3,
    "retention": 0.9,
}
LEAVE_OUT = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """Give the smallest study with other values at dotted keys."""
    raw = copy.deepcopy(TINY)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = raw
        for part in path:
            place = place.setdefault(part, {})
        if value is LEAVE_OUT:
            del place[last]
        else:
            place[last] = value
    return raw


TOY = "teachers.toy"
# what is changed -> the key that the message must name, and a part of the message
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"studdy": 1}, "studdy", "did you mean 'study'"),
    ({"study": LEAVE_OUT}, "study", "missing"),
    ({"study": "../escape"}, "study", "lower-case letters"),
    ({"study": "name\n"}, "study", "lower-case letters"),
    ({"study": "a" * 65}, "study", "lower-case letters"),
    ({"study": 7}, "study", "text"),
    ({"seeds": []}, "seeds", "at least one entry"),
    ({"seeds": [1, 1]}, "seeds", "twice"),
    ({"seeds": 17}, "seeds", "list"),
    ({"seeds": [1, -1]}, "seeds.1", "at least 0"),
    ({"seeds": [2**31]}, "seeds.0", "at most"),
    ({"seeds": [True]}, "seeds.0", "whole number"),
    ({"seeds": ["1"]}, "seeds.0", "whole number"),
    ({"arms.iskd.seeds": [99]}, "arms.iskd.seeds", "none of the study's seeds"),
    ({"arms.iskd.seeds": [3, 3]}, "arms.iskd.seeds", "twice"),
    ({"arms.iskd.seeds": []}, "arms.iskd.seeds", "at least one entry"),
    ({"seeds": [3, 4], "arms.iskd.seeds": [4]}, "arms.iskd.seeds", "first seed, 3, is missing"),
    (
        {"arms.iskd.steps": [1]},
        "arms.iskd.steps",
        "unknown key here; it goes with method one_shot, theseus, l1, kd, layer_drop, "
        "teacher_tuned; remove it",
    ),
    ({"corpus.revision": "main"}, "corpus.revision", "it goes with source hub; remove it"),
    ({"corpus.revisions": "main"}, "corpus.revisions", "unknown key; known keys here: source"),
    ({"corpus.source": "web"}, "corpus.source", "'web' is unknown"),
    ({"corpus.source": LEAVE_OUT}, "corpus.source", "missing"),
    ({"corpus.block_length": 4}, "corpus.block_length", "at least 8"),
    ({"corpus.stories": 1.0}, "corpus.stories", "whole number"),
    ({"corpus": {"source": "files", "files": ["../x"]}}, "corpus.files.0", "without '..'"),
    ({"corpus": {"source": "files", "files": ["/x"]}}, "corpus.files.0", "not absolute"),
    ({"corpus": {"source": "files", "files": []}}, "corpus.files", "at least one entry"),
    ({"corpus": {"source": "hub", "dataset": "a b"}}, "corpus.dataset", "hub id"),
    ({"data_folder": "/data"}, "data_folder", "$NAME"),
    ({"data_folder": "a/../b"}, "data_folder", "without '..'"),
    ({"teachers": {}}, "teachers", "at least one entry"),
    ({"teachers.Toy": TINY["teachers"]["toy"]}, "teachers.Toy", "lower-case letters"),
    ({f"{TOY}.source": "disk"}, f"{TOY}.source", "'disk' is unknown"),
    ({f"{TOY}.family": "bert"}, f"{TOY}.family", "'qwen3' or 'gpt_neox'"),
    ({f"{TOY}.order": "rand"}, f"{TOY}.order", "random"),
    ({f"{TOY}.order": None}, f"{TOY}.order", "random"),
    ({f"{TOY}.order": []}, f"{TOY}.order", "no block is named"),
    ({f"{TOY}.order": [1, "x"]}, f"{TOY}.order.1", "whole number"),
    ({f"{TOY}.order": [-1]}, f"{TOY}.order.0", "at least 0"),
    ({f"{TOY}.order": [3]}, f"{TOY}.order", "blocks 0 to 2"),
    ({f"{TOY}.order": [1, 1]}, f"{TOY}.order", "twice"),
    ({f"{TOY}.steps": 3}, f"{TOY}.steps", "3 steps, but the order has 2"),
    ({f"{TOY}.headline": 3}, f"{TOY}.headline", "last is 2"),
    ({f"{TOY}.steps": 1, f"{TOY}.headline": 2}, f"{TOY}.headline", "last is 1"),
    ({f"{TOY}.compact.reduction": 0.3}, f"{TOY}.compact.reduction", "leave out the one"),
    ({f"{TOY}.compact": {"reduction": 1.0}}, f"{TOY}.compact.reduction", "less than 1"),
    ({f"{TOY}.compact.recipe": "narrow"}, f"{TOY}.compact.blocks", "remove this key"),
    ({f"{TOY}.compact": {"recipe": "narrow", "mlp": 3}}, f"{TOY}.compact.mlp", "or neither"),
    (
        {f"{TOY}.compact": {"recipe": "narrow", "activation": "relu"}},
        f"{TOY}.compact.activation",
        "remove this key",
    ),
    (
        {f"{TOY}.compact": {"recipe": "narrow", "initialisation": "pca"}},
        f"{TOY}.compact.initialisation",
        "use teacher",
    ),
    (
        {f"{TOY}.compact.initialisation": "teacher"},
        f"{TOY}.compact.initialisation",
        "use recipe narrow",
    ),
    ({f"{TOY}.compact.initialisation": "xavier"}, f"{TOY}.compact.initialisation", "'zero_up'"),
    (
        {"arms.iskd.compact": {"recipe": "paper", "width": 6, "heads": 4}},
        "arms.iskd.compact.heads",
        "does not divide",
    ),
    ({f"{TOY}.compact.heads": 3}, f"{TOY}.compact.heads", "does not divide"),
    ({f"{TOY}.compact.activation": "tanh"}, f"{TOY}.compact.activation", "'relu'"),
    ({f"{TOY}.architecture.heads": 5}, f"{TOY}.architecture.heads", "does not divide"),
    ({f"{TOY}.architecture.positions": 63}, f"{TOY}.architecture.positions", "block_length"),
    ({f"{TOY}.architecture.vocabulary": 256}, f"{TOY}.architecture.vocabulary", "260"),
    ({f"{TOY}.architecture.kv_heads": 1}, f"{TOY}.architecture.kv_heads", "keys of its own"),
    (
        {f"{TOY}.family": "llama", f"{TOY}.architecture.kv_heads": 3},
        f"{TOY}.architecture.kv_heads",
        "does not divide",
    ),
    (
        {f"{TOY}.family": "gpt_neox", f"{TOY}.architecture.width": 24},
        f"{TOY}.architecture.heads",
        "multiple of 8",
    ),
    ({f"{TOY}.student.heads": 3}, f"{TOY}.student.heads", "does not divide"),
    (
        {f"{TOY}.family": "phi", f"{TOY}.student.width": 12, f"{TOY}.compact.heads": 1},
        f"{TOY}.student.heads",
        "multiple of 4",
    ),
    (
        {f"{TOY}.family": "phi", f"{TOY}.compact.width": 6, f"{TOY}.compact.heads": 1},
        f"{TOY}.compact.heads",
        "multiple of 4",
    ),
    ({f"{TOY}.training.epochs": 0}, f"{TOY}.training.epochs", "at least 1"),
    ({f"{TOY}.training.epochs": "3"}, f"{TOY}.training.epochs", "whole number"),
    ({f"{TOY}.training.sequences": 0}, f"{TOY}.training.sequences", "at least"),
    ({f"{TOY}.training.clip": 0}, f"{TOY}.training.clip", "more than 0"),
    ({f"{TOY}.training.clip": float("inf")}, f"{TOY}.training.clip", "finite"),
    ({f"{TOY}.training.clip": "1e999"}, f"{TOY}.training.clip", "finite"),
    ({f"{TOY}.training.warmup": 1}, f"{TOY}.training.warmup", "less than 1"),
    (
        {f"{TOY}.training.learning_rate": 1e-4},
        f"{TOY}.training.learning_rate",
        "a section with keys",
    ),
    (
        {f"{TOY}.training.learning_rate.rest": "-1e-4"},
        f"{TOY}.training.learning_rate.rest",
        "number",
    ),
    (
        {f"{TOY}.training.learning_rate.compact": float("nan")},
        f"{TOY}.training.learning_rate.compact",
        "",
    ),
    ({f"{TOY}.training.optimiser": "adam"}, f"{TOY}.training.optimiser", "'optimizer'"),
    ({f"{TOY}.gpus": 0}, f"{TOY}.gpus", "at least 1"),
    ({f"{TOY}.gpus": 3}, f"{TOY}.training.batch_size", "the 3 GPUs of teachers.toy.gpus"),
    (
        {f"{TOY}.gpus": 2, f"{TOY}.pretraining.batch_size": 15},
        f"{TOY}.pretraining.batch_size",
        "make it a multiple of 2",
    ),
    (
        {f"{TOY}.gpus": 4, "arms.l1.training": {"batch_size": 6}},
        "arms.l1.training.batch_size",
        "6 sequences cannot be shared evenly",
    ),
    ({f"{TOY}.parallel": "tensor"}, f"{TOY}.parallel", "'fsdp'"),
    ({f"{TOY}.parallel": "fsdp"}, f"{TOY}.parallel", "set gpus to 2 or more"),
    (
        {f"{TOY}.training.micro_batch": 0},
        f"{TOY}.training.micro_batch",
        "at least 1",
    ),
    (
        {
            f"{TOY}.training.micro_batch": 2,
            "arms.x": {"method": "iskd", "objective": {"next_token": 1.0, "hidden": 1.0}},
        },
        f"{TOY}.training.micro_batch",
        "arms.x.objective is a mean over the whole batch",
    ),
    (
        # As large as the teacher's batch, and smaller than the arm's own.
        {
            f"{TOY}.training.micro_batch": 8,
            f"{TOY}.training.batch_size": 8,
            "arms.x": {
                "method": "iskd",
                "training": {"batch_size": 16},
                "objective": {"next_token": 1.0, "hidden": 1.0},
            },
        },
        f"{TOY}.training.micro_batch",
        "arms.x.objective is a mean over the whole batch",
    ),
    (
        {f"{TOY}.training.compile": True, "arms.x": {"method": "theseus"}},
        f"{TOY}.training.compile",
        "arms.x (method theseus) puts another block in a block's place at every step",
    ),
    (
        {f"{TOY}.gpus": 2, f"{TOY}.parallel": "fsdp", f"{TOY}.training.compile": True},
        f"{TOY}.training.compile",
        "fsdp puts other classes in the place of the blocks",
    ),
    (
        {f"{TOY}.gpus": 2, f"{TOY}.parallel": "fsdp", f"{TOY}.pretraining.compile": True},
        f"{TOY}.pretraining.compile",
        "leave compile out, or take ddp",
    ),
    (
        {f"{TOY}.gpus": 2, f"{TOY}.parallel": "fsdp", "arms.x": {"method": "theseus"}},
        f"{TOY}.parallel",
        "both blocks of arms.x",
    ),
    ({"arms": {}}, "arms", "at least one entry"),
    ({"arms.x": None}, "arms.x", "a section with keys"),
    ({"arms.x": {}}, "arms.x.method", "missing"),
    ({"arms.x": {"method": "l2"}}, "arms.x.method", "'l2' is unknown"),
    (
        {"arms.kd.objective": {"temperature": 0}},
        "arms.kd.objective.temperature",
        "more than 0",
    ),
    ({"arms.kd.objective": {"kl": -1}}, "arms.kd.objective.kl", "at least 0"),
    ({"arms.kd.objective": {"temperature": 1e6}}, "arms.kd.objective.temperature", "1000"),
    ({"arms.l1.objective": {"next_token": 0}}, "arms.l1.objective", "nothing is learnt"),
    ({"arms.kd.objective": {"kl": 0}}, "arms.kd.objective.kl", "give it a weight"),
    ({"arms.kd.objective": {"hidden": 1}}, "arms.kd.objective.hidden", "fewer blocks"),
    (
        {"arms.iskd.objective": {"kl": 1.0, "hidden": 0.1, "teacher_cache": "exact"}},
        "arms.iskd.objective.teacher_cache",
        "needs the teacher itself",
    ),
    (
        {"arms.iskd.objective": {"teacher_cache": "sampled"}},
        "arms.iskd.objective.teacher_cache",
        "give kl a weight",
    ),
    (
        {"arms.x": {"method": "layer_drop", "objective": {"hidden": 1}}},
        "arms.x.objective.hidden",
        "fewer blocks",
    ),
    (
        {
            f"{TOY}.order": [0, 1, 2],
            "arms.x": {"method": "layer_drop", "match": "steps"},
        },
        "arms.x.match",
        "all 3 blocks",
    ),
    (
        {f"{TOY}.compact": {"width": 64, "heads": 2, "initialisation": "pca"}},
        f"{TOY}.compact.width",
        "more than the model's 32",
    ),
    ({"arms.iskd.warm_start": 1}, "arms.iskd.warm_start", "less than 1"),
    ({"arms.iskd.order": [1]}, "arms.iskd.order", "toy has 2 steps"),
    ({"arms.iskd.order": [1, 3]}, "arms.iskd.order", "blocks 0 to 2"),
    ({"arms.x": {"method": "one_shot", "order": "measured"}}, "arms.x.order", "step by step"),
    (
        {
            "arms.iskd.order": "measured",
            "arms.x": {"method": "layer_drop", "choose": "reference"},
        },
        "arms.x.choose",
        "step by step",
    ),
    (
        {"arms.x": {"method": "theseus", "compact": {"recipe": "parts", "reduction": 0.1}}},
        "arms.x.compact.recipe",
        "before any training",
    ),
    (
        {"arms.x": {"method": "one_shot", "compact": {"recipe": "parts", "reduction": 0.1}}},
        "arms.x.reference",
        "sets aside",
    ),
    (
        {f"{TOY}.compact": {"recipe": "narrow", "choice": "budgeted"}},
        f"{TOY}.compact.choice",
        "has no choice",
    ),
    ({"arms.x": {"method": "theseus", "first": 2}}, "arms.x.first", "at most 1"),
    (
        {"arms.iskd.as_published": True, f"{TOY}.family": "llama"},
        "arms.iskd.as_published",
        "no family llama",
    ),
    (
        {"arms.iskd": {"method": "iskd", "as_published": True, "objective": {"kl": 1}}},
        "arms.iskd.as_published",
        "next token alone",
    ),
    (
        {
            "arms.iskd": {
                "method": "iskd",
                "as_published": True,
                "compact": {"recipe": "bottleneck"},
            }
        },
        "arms.iskd.as_published",
        "recipe paper",
    ),
    ({"arms.x": {"method": "hub", "teacher": "no", "model": "a/b"}}, "arms.x.teacher", "is no"),
    (
        {"arms.x": {"method": "hub", "teacher": "toy", "model": "a/b"}},
        "arms.x.teacher",
        "tokenizer of its own",
    ),
    ({"arms.iskd.steps": [1]}, "arms.iskd.steps", "unknown key"),
    ({"arms.l1.steps": [3]}, "arms.l1.steps", "toy has 2"),
    ({"arms.l1.steps": [1, 1]}, "arms.l1.steps", "twice"),
    ({"arms.l1.training.epochs": 3}, "arms.l1.training.epochs", "unknown key"),
    ({"arms.l1.reference": "kd"}, "arms.l1.reference", "no arm of method iskd"),
    ({"arms.iskd2": {"method": "iskd"}}, "arms.l1.reference", "missing"),
    ({"arms": {"l1": {"method": "l1"}}}, "arms.l1.reference", "add one"),
    ({"tasks": {}}, "tasks", "at least one entry"),
    ({"tasks.mine": {"source": "toyworld"}}, "tasks.mine", "say its kind"),
    ({"tasks.hellaswag.rows": 7}, "tasks.hellaswag.rows", "the corpus makes 6"),
    ({"tasks.h": {**HUB_TASK, "revision": "main"}}, "tasks.h.revision", "40 hexadecimal"),
    ({"tasks.h": {**HUB_TASK, "split": "a b"}}, "tasks.h.split", "not allowed"),
    (
        {"tasks.h": {"source": "heldout", "kind": "hellaswag"}},
        "tasks.h.kind",
        "cbt_question and cbt_context",
    ),
    ({"corpus": {"source": "hub", "dataset": "a/b"}}, "tasks.cbt_context.source", "toyworld"),
    ({"evaluation.batch": 1}, "evaluation.batch", "did you mean 'batch_size'"),
    # What no study holds, and what could not be printed.
    ({"[key]": 1}, "[key]", "unknown key"),
    ({"list[x]": 1}, "list[x]", "unknown key"),
    ({"corpus.\x1b[2J": 1}, "corpus", r"'\x1b[2J' is no key"),
    ({"corpus": {" ": 1}}, "corpus", "' ' is no key"),
    ({"corpus": {1: 1}}, "corpus", "1 is no key; use 1 to 64 characters"),
    ({"arms": {"k" * 5000: {"method": "iskd"}}}, "arms", "is no key"),
    ({"study": 16**6000}, "study", "more than 308 digits"),
    ({"seeds": [-(16**6000)]}, "seeds.0", "more than 308 digits"),
    ({"corpus.stories": 10**30}, "corpus.stories", "at most 2147483647"),
    ({f"{TOY}.training.batch_size": 2**31}, f"{TOY}.training.batch_size", "2147483647"),
    (
        {f"{TOY}.order": "random", f"{TOY}.architecture.blocks": 10**9},
        f"{TOY}.architecture.blocks",
        "at most 1000",
    ),
    (
        {f"{TOY}.order": "random", f"{TOY}.architecture.blocks": 401},
        f"{TOY}.steps",
        "set at most 400",
    ),
    ({f"{TOY}.source": "x" * 5000}, f"{TOY}.source", "... is unknown; use 'pretrain', 'hub'"),
    ({"claims": [{"task": "x"}]}, "claims.0.teacher", "missing; add it (The teacher it is about)"),
    # A misspelled key is told before those that are missing.
    ({"claims": [{"tusk": "x"}]}, "claims.0.tusk", "unknown key; did you mean 'task'"),
    ({"claims": [CLAIM | {"sorce": "x"}]}, "claims.0.sorce", "did you mean 'source'"),
    (
        {"claims": [CLAIM | {"metric": "f1"}]},
        "claims.0.metric",
        "'f1'; tasks.hellaswag has acc, acc_n",
    ),
    ({"claims": [CLAIM | {"source": "a\x1b[2J"}]}, "claims.0.source", "one line of characters"),
    ({"tracking": {"report_to": ["clearml"]}}, "tracking.report_to.0", "'tensorboard', 'wandb'"),
    ({"tracking": {"report_to": ["wandb", "wandb"]}}, "tracking.report_to", "twice"),
    ({"tracking": {"report_to": ["none", "wandb"]}}, "tracking.report_to", "beside trackers"),
]


@pytest.mark.parametrize(("changes", "key", "part"), BAD, ids=[f"{k}-{p}" for _, k, p in BAD])
def test_a_mistake_is_one_line_with_its_key(changes: dict[str, Any], key: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(changed(changes), "my.yaml")
    message = str(caught.value)
    assert message.startswith(
        (f"my.yaml: {key}: ", "my.yaml: arms.") if key == "arms" else f"my.yaml: {key}: "
    )
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("raw", [None, [], "text", {}, {1: 2}, {"study": {"a": [1, {}]}}])
def test_something_that_is_no_study_gives_no_traceback(raw: Any) -> None:
    with pytest.raises(UserError, match=r"^my\.yaml: "):
        load_study(raw, "my.yaml")


def test_aliases_without_an_end_are_refused() -> None:
    itself: dict[str, Any] = {}
    itself["x"] = itself
    doubled: Any = [1]
    for _ in range(40):
        doubled = [doubled, doubled]
    for value in (itself, doubled, [0] * 200_000):
        with pytest.raises(UserError, match=r"^my\.yaml: corpus\.stories.*look for an alias"):
            load_study(changed({"corpus.stories": value}), "my.yaml")


def test_the_arm_teacher_is_reserved() -> None:
    raw = changed({"arms": {"teacher": {"method": "iskd"}}})
    with pytest.raises(UserError, match=r"arms\.teacher: this name stands for the teacher"):
        load_study(raw, "my.yaml")


def test_several_mistakes_are_counted_by_key() -> None:
    with pytest.raises(UserError, match=r"\(and 1 more\)$"):
        load_study(changed({"seeds": [-1], f"{TOY}.order": "rand"}), "my.yaml")
    with pytest.raises(UserError) as caught:
        load_study(changed({f"{TOY}.order": "rand"}), "my.yaml")
    assert "more)" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"), [("1e-4", 1e-4), ("2.5E-5", 2.5e-5), ("5e-1", 0.5), ("1.0e-4", 1e-4)]
)
def test_scientific_notation_is_a_number(written: str, meant: float) -> None:
    text = yaml.safe_dump(TINY).replace("learning_rate: 0.002", f"learning_rate: {written}")
    study = load_study(yaml.safe_load(text), "my.yaml")
    teacher = study.teachers["toy"]
    assert isinstance(teacher, PretrainedHere)
    assert teacher.pretraining.learning_rate == meant


def test_defaults_are_the_published_settings() -> None:
    raw = changed(
        {
            "seeds": LEAVE_OUT,
            f"{TOY}.training": LEAVE_OUT,
            "teachers.gpt2": {
                "source": "hub",
                "family": "gpt2",
                "model": "openai-community/gpt2",
                "blocks": 12,
                "compact": {"width": 128, "heads": 2, "blocks": 2, "mlp": 512},
                "order": [5],
                "student": {"blocks": 6, "width": 768, "heads": 12},
            },
        }
    )
    study = load_study(raw, "my.yaml")
    assert study.seeds == [17]
    teacher = study.teachers["gpt2"]
    assert isinstance(teacher, HubTeacher)
    assert teacher.revision is None
    assert teacher.compact.recipe == "paper"
    assert teacher.compact.initialisation is None
    assert study.evaluation.steps == "all"
    assert teacher.training.model_dump() == {
        "micro_batch": None,
        "checkpointing": False,
        "compile": False,
        "fused": False,
        "epochs": 1,
        "sequences": None,
        "batch_size": 8,
        "learning_rate": {"compact": 1e-4, "rest": 2e-5},
        "optimizer": "adam",
        "weight_decay": 0.0,
        "beta2": 0.999,
        "schedule": "linear",
        "warmup": 0.0,
        "clip": 1.0,
        "precision": "float32",
    }


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "config").glob("*.yaml")))
def test_the_studies_that_come_with_the_workflow_are_good(file: str) -> None:
    raw = yaml.safe_load((ROOT / "config" / file).read_text())
    # What a config leaves to its model, as the hub would tell it.
    study = load_study(fill_in(raw, file, lambda *_: {"model_type": "gpt2", "n_layer": 12}), file)
    for section in ("teachers", "tasks", "arms"):
        assert getattr(study, section).keys() == raw[section].keys()
    # Nothing in it is left to a default that the schema itself would refuse.
    assert load_study(study.model_dump(mode="json"), file) == study


def test_the_published_study_names_the_published_orders() -> None:
    study = load_study(yaml.safe_load((ROOT / "config" / "paper.yaml").read_text()), "paper.yaml")
    orders = {t.family: t.order for t in study.teachers.values()}
    assert orders == {
        "gpt2": [5, 7, 3, 9, 1, 11, 2, 10, 4, 8, 6, 0],
        "phi": [
            *(9, 1, 19, 15, 14, 7, 17, 8, 10, 11, 13, 20),
            *(0, 4, 12, 18, 6, 21, 5, 2, 23, 3, 16, 22),
        ],
    }


def test_a_study_cannot_be_changed_once_it_is_read() -> None:
    study = load_study(TINY, "my.yaml")
    with pytest.raises(ValueError, match="frozen"):
        study.study = "other"  # type: ignore[misc]


def test_every_key_is_described_in_the_schema() -> None:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    bare = [
        (section["title"], key)
        for section in sections
        for key, value in section.get("properties", {}).items()
        # A section described in the very words of its key is described at its definition.
        if not (value.get("description") or "$ref" in value)
    ]
    assert not bare
    assert all(s["additionalProperties"] is False for s in sections if "properties" in s)
    json.dumps(schema)


# --- local files ----------------------------------------------------------------------------

FILES = {
    "corpus": {"source": "files", "files": ["a.jsonl", "b/c.jsonl"]},
    "tasks": {"mine": {"source": "file", "kind": "hellaswag", "file": "rows.jsonl"}},
    "data_folder": "$MY_DATA",
}


def good_row() -> dict[str, Any]:
    return {
        "activity_label": "a",
        "ctx_a": "b",
        "ctx_b": "c",
        "endings": ["d", "e", "f", "g"],
        "label": "1",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "b").mkdir()
    for name in ("a.jsonl", "b/c.jsonl"):
        lines = [json.dumps({"text": f"{name} {n}: and so the story goes on"}) for n in range(20)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps(good_row()) + "\n")
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    return tmp_path


def files_study() -> Study:
    return load_study(changed(FILES), "my.yaml")


def test_good_local_files_pass(folder: Path) -> None:
    check_data_files(files_study(), "my.yaml")
    assert data_folder(files_study(), "my.yaml") == folder


@pytest.mark.parametrize(
    ("edit", "key", "part"),
    [
        (lambda f: (f / "a.jsonl").unlink(), "corpus.files.0", "a.jsonl is not there"),
        (lambda f: (f / "b/c.jsonl").write_text(""), "corpus.files.1", "empty"),
        (lambda f: (f / "a.jsonl").write_bytes(b"\xff"), "corpus.files.0", "not UTF-8"),
        (lambda f: (f / "a.jsonl").write_text("{"), "corpus.files.0", "a.jsonl, line 1"),
        (lambda f: (f / "rows.jsonl").unlink(), "tasks.mine.file", "rows.jsonl is not there"),
        (lambda f: (f / "rows.jsonl").write_text("{}"), "tasks.mine.file", "rows.jsonl"),
        (lambda f: (f / "rows.jsonl").write_text("["), "tasks.mine.file", "broken JSON"),
        (
            lambda f: (f / "rows.jsonl").write_text(f'{{"n": {"9" * 5000}}}'),
            "tasks.mine.file",
            "broken JSON (Exceeds the limit",
        ),
    ],
)
def test_a_bad_local_file_is_found_before_anything_runs(
    edit: Callable[[Path], Any], key: str, part: str, folder: Path
) -> None:
    edit(folder)
    with pytest.raises(UserError) as caught:
        check_data_files(files_study(), "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {key}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_name_that_is_too_long_is_not_there(folder: Path) -> None:
    name = "a" * 300
    for changes, key in (
        ({"corpus.files": [name]}, "corpus.files.0"),
        ({"data_folder": name}, "data_folder"),
    ):
        raw = changed(FILES | changes)
        with pytest.raises(UserError, match=rf"^my\.yaml: {key}: .*(not there|no folder)"):
            check_data_files(load_study(raw, "my.yaml"), "my.yaml")


def test_a_data_folder_that_is_not_there_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_DATA", raising=False)
    with pytest.raises(UserError, match="environment variable MY_DATA is not set"):
        check_data_files(files_study(), "my.yaml")
    monkeypatch.setenv("MY_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="is no folder"):
        check_data_files(files_study(), "my.yaml")
    monkeypatch.chdir(tmp_path)
    for study, part in (
        (changed(FILES | {"data_folder": "here"}), "here is no folder"),
        (changed({"corpus": FILES["corpus"], "tasks": FILES["tasks"]}), "missing"),
    ):
        with pytest.raises(UserError, match=part):
            check_data_files(load_study(study, "my.yaml"), "my.yaml")


def test_a_study_without_local_files_needs_no_folder() -> None:
    study = load_study(TINY, "my.yaml")
    check_data_files(study, "my.yaml")
    # It did not ask for the folder, which would have been refused.
    with pytest.raises(UserError, match="data_folder: missing"):
        data_folder(study, "my.yaml")
