"""What a study's author reads before anything runs: one line that names what would be right."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from iskd.config import check_data_files, check_fetched_corpus, load_study, model_notes
from iskd.config.as_meant import as_meant, in_plain_words
from iskd.config.model_checks import check_given_model
from iskd.config.schema import Study
from iskd.data.language import english_share, not_english
from iskd.data.texts import write_texts
from iskd.data.toyworld import make_toyworld
from iskd.errors import UserError
from iskd.plan import StudyPlan, given_folders
from iskd.plan.reductions import spread

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text())
GERMAN = (
    "Es war einmal ein Mädchen, das lebte mit seiner Mutter in einem Haus am Rande des Waldes. "
    "Eines Tages sagte die Mutter: Bring der Großmutter diesen Kuchen, und geh an die Arbeit."
)
JAPANESE = "むかしむかし、あるところに、おじいさんとおばあさんがいました。"
ENGLISH = "Once there was a hen that lived with her mother in a house, and they had a dog."


# --- values in the wrong form ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "meant"),
    [
        ("float_type", "30%", "0.3"),
        ("float_type", " 2.5 % ", "0.025"),
        ("float_type", "0.3", "0.3, without quotes"),
        ("int_type", "17", "17, without quotes"),
        ("int_type", "17%", None),
        ("int_type", "1.5", None),
        ("float_type", "a third", None),
        ("list_type", 17, "[17]"),
        ("list_type", "seventeen", None),
        ("list_type", True, None),
        ("string_type", 7, None),
    ],
)
def test_a_value_is_shown_as_it_was_meant(kind: str, value: object, meant: str | None) -> None:
    assert as_meant(kind, value) == meant


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("Input should be a valid boolean, unable to interpret input", "true or false"),
        ("Input should be a valid integer, got a number with a fractional part", "a whole number"),
        (
            "Input should be a valid dictionary or object to extract fields from",
            "a section with keys of its own",
        ),
        ("Input should be greater than or equal to 3", "at least 3"),
        ("Input should be greater than 0", "more than 0"),
        ("Input should be 'a' or 'b'", "'a' or 'b'"),
    ],
)
def test_the_schemas_library_is_not_heard(said: str, plain: str) -> None:
    assert in_plain_words(said) == f"it should be {plain}"


def test_what_is_too_short_or_too_long_is_said_in_plain_words() -> None:
    empty = in_plain_words("List should have at least 1 item after validation, not 0")
    assert empty == "it should have at least one entry"
    long = in_plain_words("String should have at most 80 characters")
    assert long == "it should have at most 80 characters"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            lambda raw: raw.update(seeds=17),
            "my.yaml: seeds: 17 does not fit; it should be a list: [17] (Every arm is run",
        ),
        (
            lambda raw: raw["teachers"]["toy"].update(compact={"reduction": "30%"}),
            "my.yaml: teachers.toy.compact.reduction: '30%' does not fit; it should be a "
            "number: 0.3 (1 - parameters",
        ),
    ],
)
def test_the_line_shows_what_would_be_right(
    edit: Callable[[dict[str, Any]], object], line: str
) -> None:
    raw = copy.deepcopy(TINY)
    edit(raw)
    with pytest.raises(UserError) as caught:
        load_study(raw, "my.yaml")
    assert str(caught.value).startswith(line)


# --- a corpus that is too small, or of another language -------------------------------------


def corpus_study(folder: Path, texts: list[str], **corpus: Any) -> Study:
    """Give a study whose corpus is a file of texts in a folder, with a cloze made from it."""
    (folder / "data").mkdir(exist_ok=True)
    write_texts(texts, folder / "data/mine.jsonl")
    own = {"source": "files", "files": ["mine.jsonl"], "block_length": 64}
    tasks = {"cbt_context": {"source": "heldout"}}
    return load_study(
        TINY | {"corpus": own | corpus, "tasks": tasks, "data_folder": "data"}, "my.yaml"
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("texts", "corpus", "expected"),
    [
        (["one"], {}, "1 different stories are too few for a held-out share of 0.1"),
        ([ENGLISH, "two"], {}, "2 different stories are too few for a held-out share of 0.1"),
        ([ENGLISH] * 50, {}, "1 different stories are too few"),
        ([f"{ENGLISH} {n}" for n in range(50)], {"rows": 1}, "1 different stories are too few"),
        (
            [f"{n}" for n in range(100)],
            {},
            "10 of 100 stories are there to hold out, which have at most 40 tokens, and one "
            "sequence has 64 (corpus.block_length); give more text",
        ),
        (["a", "b", "c", "d"], {"heldout_share": 0.5}, "2 of 4 stories are there to train on"),
    ],
)
def test_a_corpus_of_too_few_stories_is_refused(
    here: Path, texts: list[str], corpus: dict[str, Any], expected: str
) -> None:
    study = corpus_study(here, texts, **corpus)
    with pytest.raises(UserError) as caught:
        check_data_files(study, "my.yaml")
    assert str(caught.value).startswith("my.yaml: corpus.files: ")
    assert expected in str(caught.value)


def test_a_corpus_that_is_large_enough_passes(here: Path) -> None:
    check_data_files(corpus_study(here, [f"{ENGLISH} {n}" for n in range(20)]), "my.yaml")


@pytest.mark.parametrize(("text", "share"), [(GERMAN, "0%"), (JAPANESE, "0%")])
def test_a_cloze_from_another_language_is_refused(here: Path, text: str, share: str) -> None:
    study = corpus_study(here, [f"{text} {n}" for n in range(20)])
    with pytest.raises(UserError) as caught:
        check_data_files(study, "my.yaml")
    assert str(caught.value) == (
        "my.yaml: tasks.cbt_context.source: heldout makes a cloze from English prose only, and the "
        f"text seems to be no English: {share} of its words are frequent English words, of English "
        "prose at least 15% are; give rows of your own (source: file), or a task of lm-eval in "
        "that language"
    )
    # Where no task is made from the corpus, its language is nobody's business.
    own = {"toy": {"source": "lm_eval", "kind": "arc_easy"}}
    check_data_files(load_study(study.model_dump() | {"tasks": own}, "my.yaml"), "my.yaml")


def test_the_language_of_a_fetched_corpus_is_checked_once_it_is_there(here: Path) -> None:
    raw = TINY | {
        "corpus": {"source": "hub", "dataset": "a/b"},
        "tasks": {"cbt_context": {"source": "heldout"}},
    }
    study = load_study(raw, "my.yaml")
    check_fetched_corpus(study, here / "results/tiny", "my.yaml")
    (here / "results/tiny/download_corpus").mkdir(parents=True)
    write_texts([ENGLISH] * 3, here / "results/tiny/download_corpus/texts.jsonl")
    check_fetched_corpus(study, here / "results/tiny", "my.yaml")
    write_texts([GERMAN] * 3, here / "results/tiny/download_corpus/texts.jsonl")
    with pytest.raises(UserError, match="cloze from English prose only"):
        check_fetched_corpus(study, here / "results/tiny", "my.yaml")


def test_the_embedded_world_is_english() -> None:
    world = make_toyworld(seed=1, stories=50, heldout_stories=10, cloze_rows=2, continuation_rows=2)
    assert (english_share(world.train) or 0) > 0.25
    assert not_english(["1 2 3", "..."]) is None


# --- a model in a local folder --------------------------------------------------------------


def given_study(**teacher: Any) -> Study:
    given = {"source": "folder", "folder": "model", "family": "llama", "blocks": 4, "order": [1, 2]}
    files = {"files": ["model.safetensors"], "student": None}
    raw = TINY | {"data_folder": "data", "teachers": {"toy": {**given, **files, **teacher}}}
    raw["arms"] = {"iskd": {"method": "iskd"}}
    return load_study(raw, "my.yaml")


def put_model(folder: Path, dtype: torch.dtype = torch.float32, width: int = 8) -> Path:
    """Write weights of a decoder: four blocks hold 80 % of it."""
    model = folder / "data/model"
    model.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.layers.{n}.mlp.up.weight": torch.zeros(width, width) for n in range(4)}
    tensors["model.embed_tokens.weight"] = torch.zeros(width, width)
    save_file({n: t.to(dtype) for n, t in tensors.items()}, model / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("dtype", "teacher", "expected"),
    [
        (torch.bfloat16, {}, "in bfloat16; models made of it are saved in bfloat16"),
        (torch.float16, {}, "in float16; models made of it are saved in float16"),
        (torch.float64, {}, "in F64; models made of it are saved in float32"),
        (
            torch.bfloat16,
            {"save_precision": "float32"},
            "in bfloat16; models made of it are saved in float32",
        ),
    ],
)
def test_a_plan_says_in_which_format_models_are_saved(
    here: Path, dtype: torch.dtype, teacher: dict[str, Any], expected: str
) -> None:
    put_model(here, dtype)
    (note,) = model_notes(given_study(**teacher), "my.yaml")
    assert note.startswith("my.yaml: teachers.toy: llama of 4 blocks in ")
    assert f"{expected} (key save_precision)" in note
    assert "\n" not in note


def test_a_plan_says_whether_a_model_has_a_chat_template(here: Path) -> None:
    model = put_model(here)
    study = given_study()
    assert "it has no chat template (an instruct model needs one: " in model_notes(study, "f")[0]
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert model_notes(study, "f")[0].endswith("its chat template is kept")
    config.write_text("{}")
    assert "has no chat template" in model_notes(study, "f")[0]
    (model / "chat_template.jinja").touch()
    assert model_notes(study, "f")[0].endswith("its chat template is kept")
    # What is broken is the business of the check before it, and of the job that reads it.
    (model / "model.safetensors").write_bytes(b"")
    assert model_notes(study, "f") == []


CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 8}
TOKENIZER = {"model": {"vocab": {f"t{n}": n for n in range(8)}}}


@pytest.mark.parametrize(
    ("config", "tokenizer", "teacher", "expected"),
    [
        ({}, {}, {}, None),
        ({}, {"model": {"vocab": [["a", 0.0]] * 8}}, {}, None),
        ({}, {"model": {"type": "another"}}, {}, None),
        (
            {},
            {"added_tokens": [{"id": 8}]},
            {},
            ".folder: the tokenizer in data/model has a token 8, and config.json says a vocabulary "
            "of 8; save the tokenizer of this model there, or resize the model's embeddings",
        ),
        (
            {"model_type": "mistral"},
            {},
            {},
            ".family: llama, and config.json says mistral; leave the key out",
        ),
        (
            {},
            {},
            {"blocks": 3},
            ".blocks: 3, and config.json says 4; leave the key out",
        ),
        (
            {"max_position_embeddings": 16},
            {},
            {},
            "corpus.block_length: 64, and the model of teachers.toy takes 16 tokens (config.json); "
            "ask for no more",
        ),
        (
            {"num_attention_heads": 4, "intermediate_size": 16},
            {},
            {"compact": {"recipe": "narrow", "heads": 4, "mlp": 16}},
            None,
        ),
        (
            {"num_attention_heads": 4, "intermediate_size": 16},
            {},
            {"compact": {"recipe": "narrow", "heads": 2, "mlp": 17}},
            ".compact.mlp: 17, and a block of teachers.toy has 16, of which recipe narrow keeps "
            "some; ask for less",
        ),
    ],
)
def test_a_model_that_is_another_than_the_config_says_is_refused(
    here: Path,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    teacher: dict[str, Any],
    expected: str | None,
) -> None:
    model = put_model(here)
    (model / "config.json").write_text(json.dumps(CONFIG | config))
    (model / "tokenizer.json").write_text(json.dumps(TOKENIZER | tokenizer))
    study = given_study(**teacher)
    if expected is None:
        check_given_model(study, "toy", Path("data"), "my.yaml")
        return
    with pytest.raises(UserError) as caught:
        check_given_model(study, "toy", Path("data"), "my.yaml")
    where = "my.yaml: " if expected.startswith("corpus") else "my.yaml: teachers.toy"
    assert str(caught.value) == where + expected


# --- a reduction out of reach ---------------------------------------------------------------


def check(study: Study, results: Path = Path("results/tiny")) -> None:
    StudyPlan(study).check_reductions(given_folders(study, Path("data"), results), "my.yaml")


def test_a_reduction_that_the_blocks_do_not_hold_is_refused(here: Path) -> None:
    put_model(here)
    check(given_study(compact={"recipe": "narrow", "reduction": 0.3}))
    with pytest.raises(UserError) as caught:
        check(given_study(compact={"recipe": "narrow", "reduction": 0.95}))
    assert str(caught.value) == (
        "my.yaml: teachers.toy.compact.reduction: reduction 0.95 cannot be reached by replacing 2 "
        "blocks, which hold 40.0% of the model; replace more blocks (steps, order) or ask for less"
    )
    # An arm may ask for its own.
    study = given_study()
    arm = {"method": "iskd", "compact": {"recipe": "narrow", "reduction": 0.5}}
    own = load_study(study.model_dump() | {"arms": {"mine": arm}}, "my.yaml")
    with pytest.raises(
        UserError, match=r"^my\.yaml: arms\.mine\.compact\.reduction: reduction 0\.5"
    ):
        check(own)


def test_recipe_parts_changes_any_block_however_few_the_steps(here: Path) -> None:
    put_model(here)
    arm = {"method": "iskd", "compact": {"recipe": "parts", "reduction": 0.5}}
    raw = given_study(steps=1).model_dump() | {"arms": {"mine": arm}}
    check(load_study(raw, "my.yaml"))
    arm["compact"] = {"recipe": "parts", "reduction": 0.9}
    with pytest.raises(UserError) as caught:
        check(load_study(raw, "my.yaml"))
    assert str(caught.value) == (
        "my.yaml: arms.mine.compact.reduction: reduction 0.9 cannot be reached by making 4 blocks "
        "smaller, which hold 80.0% of the model; ask for less"
    )


def test_what_an_arm_takes_over_from_its_teachers_section_is_refused_too(here: Path) -> None:
    put_model(here)
    raw = given_study(compact={"recipe": "narrow", "reduction": 0.95}).model_dump()
    best = {"method": "iskd", "recipe": "best"}
    with pytest.raises(UserError, match=r"^my\.yaml: teachers\.toy\.compact\.reduction: .*0\.95"):
        check(load_study(raw | {"arms": {"smaller": best}}, "my.yaml"))


def test_a_model_of_the_hub_is_looked_at_once_it_is_there(here: Path) -> None:
    given = {"source": "hub", "model": "a/b", "family": "llama", "blocks": 4, "order": [1, 2]}
    raw = TINY | {"teachers": {"toy": {**given, "compact": {"reduction": 0.95}}}}
    study = load_study(raw | {"arms": {"iskd": {"method": "iskd"}}}, "my.yaml")
    check(study)
    (here / "results/tiny/download_model").mkdir(parents=True)
    put_model(here).rename(here / "results/tiny/download_model/toy")
    with pytest.raises(UserError, match=r"0\.95 cannot be reached"):
        check(study)


@pytest.mark.parametrize("recipe", ["paper", "bottleneck", "narrow"])
def test_a_teacher_that_is_made_here_is_counted(recipe: str) -> None:
    raw = copy.deepcopy(TINY)
    raw["arms"] = {"iskd": {"method": "iskd"}}
    raw["teachers"]["toy"]["compact"] = {"recipe": recipe, "reduction": 0.95}
    with pytest.raises(UserError, match=r"^my\.yaml: teachers\.toy\.compact\.reduction: "):
        check(load_study(raw, "my.yaml"))
    raw["teachers"]["toy"]["compact"]["reduction"] = 0.3
    check(load_study(raw, "my.yaml"))


def test_the_share_of_the_blocks_is_read_from_names_and_shapes() -> None:
    gpt2 = [(f"h.{n}.mlp.c_fc.weight", (4, 6)) for n in range(3)] + [("wte.weight", (10, 4))]
    masks = [(f"h.{n}.attn.bias", (1, 1, 99, 99)) for n in range(3)]
    found = spread([*gpt2, *masks], 3)
    assert found is not None
    assert (found.whole, found.block) == (3 * 24 + 40, 24)
    # Fewer blocks than the config says, blocks of two sizes, other names: a job has to tell.
    assert spread(gpt2, 4) is None
    assert spread([*gpt2, ("h.1.more", (2,))], 3) is None
    assert spread([("encoder.block.0.weight", (2,))], 1) is None
