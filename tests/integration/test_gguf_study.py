"""The study of config/smollm2.yaml in small: a GGUF teacher of two blocks, the same arms.

What a practitioner's model brings along must be in every arm's folder: number format, chat
template, generation config, readable files.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from iskd.data.corpus import token_sequences, train_tokenizer
from iskd.data.rows import write_rows
from iskd.data.texts import write_texts
from iskd.data.toyworld import make_toyworld
from iskd.provenance.tensors import MASTER, weight_files
from tests.gguf_model import TEMPLATE, small_llama, write_gguf
from tests.workflow.conftest import ROOT, Clone, make_clone

CONFIG = ("--configfile", "config/small.yaml")
TEACHER = "import_model/smollm2"
ARMS = {
    "substitute_block": ("paper", "best"),
    "drop_layers": ("layer_drop",),
    "prune_l1": ("l1",),
    "tune_teacher": ("tuned",),
}
HEADLINES = [f"{rule}/smollm2/{arm}/seed_17/step_02" for rule, arms in ARMS.items() for arm in arms]


def lay_out(folder: Path) -> None:
    """Write the study's data: stories, tasks made of them, and a model trained for a moment."""
    world = make_toyworld(
        seed=1, stories=300, heldout_stories=40, cloze_rows=6, continuation_rows=12
    )
    write_texts(world.train, folder / "stories.jsonl")
    write_texts(world.heldout, folder / "other.jsonl")
    write_rows(folder / "hellaswag.jsonl", world.hellaswag)
    tokenizer = train_tokenizer(world.train, vocabulary=400, length=256)
    torch.manual_seed(1)
    model = small_llama(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for batch in token_sequences(world.train, tokenizer, 64).long().split(16):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (folder / "model").mkdir()
    write_gguf(model, tokenizer, folder / "model/small.gguf")


def small_config() -> str:
    """Give config/smollm2.yaml with a small model, few tokens and rows."""
    config = yaml.safe_load((ROOT / "config/smollm2.yaml").read_text(encoding="utf-8"))
    teacher = config["teachers"]["smollm2"]
    for key in ("files", "family", "blocks"):
        del teacher[key]  # the file tells
    teacher |= {"gguf": "small.gguf", "order": [1, 0]}
    teacher["training"] |= {"sequences": 16}
    config["arms"]["best"]["order"] = [0, 1]
    for arm in ("layer_drop", "l1"):
        config["arms"][arm]["steps"] = [2]
    config["corpus"] |= {"files": ["stories.jsonl"], "block_length": 64, "heldout_share": 0.2}
    config["tasks"] = {
        "hellaswag": {"source": "file", "file": "hellaswag.jsonl", "rows": 8},
        "cbt_question": {"source": "heldout", "rows": 4},
    }
    config["texts"] = {"wikitext": {"source": "files", "files": ["other.jsonl"], "rows": 4}}
    config["generation"] = None
    config["evaluation"] |= {"steps": [2]}
    config["evaluation"]["efficiency"] = {
        **{"batch_sizes": [1], "prompt_tokens": 8, "new_tokens": 4},
        **{"repeats": 3, "warmup": 1},
    }
    return yaml.safe_dump(config, sort_keys=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the study was run, by somebody whose files their group may read."""
    clone = make_clone(tmp_path_factory.mktemp("gguf") / "clone")
    (clone.folder / "config/small.yaml").write_text(small_config(), encoding="utf-8")
    (clone.folder / "data/smollm2").mkdir(parents=True)
    lay_out(clone.folder / "data/smollm2")
    before = os.umask(0o027)
    try:
        done = clone.snakemake("-c", "2", *CONFIG)
    finally:
        os.umask(before)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return clone


@pytest.fixture(scope="module")
def results(clone: Clone) -> Path:
    return clone.folder / "results/smollm2"


def formats(folder: Path) -> set[str]:
    found = set()
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return found


def rows_of(file: Path) -> list[str]:
    """Give the rows of a table in Markdown: head, ruler and all others."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|")]


@pytest.mark.parametrize("place", [TEACHER, *HEADLINES])
def test_a_folder_keeps_what_its_teacher_brought(results: Path, place: str) -> None:
    folder = results / place
    assert formats(folder) == {"BF16"}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
    given = (results / TEACHER / "generation_config.json").read_bytes()
    assert (folder / "generation_config.json").read_bytes() == given
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}


@pytest.mark.parametrize("place", HEADLINES[:4])
def test_thirty_per_cent_fewer_parameters_are_25_per_cent_fewer_bytes(
    results: Path, place: str
) -> None:
    sizes = [
        sum(file.stat().st_size for file in weight_files(results / name))
        for name in (TEACHER, place)
    ]
    assert sizes[1] < 0.75 * sizes[0]


def test_only_inner_steps_hold_weights_to_train_on(results: Path) -> None:
    for arm in ARMS["substitute_block"]:
        chain = results / f"substitute_block/smollm2/{arm}/seed_17"
        assert (chain / "step_01" / MASTER).is_file()
        assert not (chain / "step_02" / MASTER).exists()
    assert list(results.rglob(MASTER)) == sorted(
        results / f"substitute_block/smollm2/{arm}/seed_17/step_01/{MASTER}"
        for arm in sorted(ARMS["substitute_block"])
    )


def test_manifest_card_and_tables_say_how_it_was_stored(results: Path) -> None:
    manifest = (results / TEACHER / "manifest.json").read_text(encoding="utf-8")
    assert "Q4_1 (15 tensors), F32 (5 tensors)" in manifest
    card = (results / HEADLINES[0] / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert "small.gguf" in card
    assert "Q4_1 (15 tensors), F32 (5 tensors)" in card
    assert "bfloat16" in card
    table = rows_of(results / "paper/table_efficiency.md")
    place = [cell.strip() for cell in table[0].split("|")].index("Stored with (bits/weight)")
    stored = {row.split("|")[place].strip() for row in table[2:]}
    assert stored == {"16"}


def test_the_smaller_model_writes(results: Path) -> None:
    for place in HEADLINES:
        model = AutoModelForCausalLM.from_pretrained(results / place)
        tokenizer = AutoTokenizer.from_pretrained(results / place)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Tell me of the hen."}], tokenize=False
        )
        prompt = tokenizer(text, return_tensors="pt")
        assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > 4


def test_the_loss_on_other_text_is_in_the_main_table(results: Path) -> None:
    assert "WikiText loss (nats/token)" in rows_of(results / "paper/table_main.md")[0]


def test_it_is_audited(clone: Clone) -> None:
    for more in ((), ("--at", "checkout")):
        done = clone.iskd("verify", "results/smollm2", *more)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", [HEADLINES[1], HEADLINES[3]])
def test_an_artifact_of_a_study_of_local_files_is_made_again(clone: Clone, place: str) -> None:
    done = clone.iskd("reproduce", f"results/smollm2/{place}")
    assert f"BITWISE {place}" in done.stdout, done.stdout + done.stderr


# Folders of each kind, files that rules name and files that only manifests name.
DELETED = [
    HEADLINES[1],
    HEADLINES[4],
    f"{HEADLINES[0]}/model.safetensors",
    f"{HEADLINES[2]}/chat_template.jinja",
    f"{HEADLINES[3]}/README.md",
    "paper/table_main.md",
    "metrics.csv",
]


def test_a_finished_study_has_nothing_to_do(clone: Clone) -> None:
    assert clone.planned(*CONFIG) == {}


@pytest.mark.parametrize("name", DELETED)
def test_a_deleted_final_artifact_is_noticed(clone: Clone, results: Path, name: str) -> None:
    path, away = results / name, clone.folder / "away"
    shutil.move(path, away)
    counts = clone.planned(*CONFIG)
    wanted = name.split("/", maxsplit=1)[0] if name.startswith(tuple(ARMS)) else None
    if name.endswith("README.md"):
        wanted = "model_card"
    assert counts, f"{name} is missing, and nothing is to be done"
    assert wanted is None or counts.get(wanted) == 1, counts
    shutil.move(away, path)
    assert clone.planned(*CONFIG) == {}
