"""A rehearsal at full size: GPT-2 small from a stand-in of the hub, Phi-1 with 2 of its 24 blocks.

Weights are random, the step is a short one; shapes, files and memory are the real ones.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

from iskd.data.corpus import train_tokenizer
from iskd.data.toyworld import make_toyworld
from iskd.models import replace_block, resolve_sizes
from iskd.provenance.artifact import read_manifest
from iskd.training.loop import fine_tune
from iskd.training.memory import plan_memory
from tests.hub_standin import HubStandin
from tests.unit.test_fine_tune import SETTINGS
from tests.workflow.conftest import Clone, make_clone, without_network

pytestmark = pytest.mark.slow

GPT2_SMALL = 124_439_808
"""Parameters of the published model."""
PHI_1 = 1_418_270_720
"""Likewise."""


@pytest.fixture
def hub(tmp_path: Path) -> HubStandin:
    """The hub with GPT-2 small's shape, and a tokenizer whose tokens are among its 50,257."""
    world = make_toyworld(seed=1, stories=60, heldout_stories=10, cloze_rows=2, continuation_rows=2)
    folder = tmp_path / "model"
    config = GPT2Config(bos_token_id=0, eos_token_id=0)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(world.train, 512, 1024).save_pretrained(folder)
    hub = HubStandin(tmp_path / "repositories")
    hub.publish("model", "standin/gpt2", {f.name: f.read_bytes() for f in folder.iterdir()})
    return hub


@pytest.fixture
def clone(hub: HubStandin, tmp_path: Path) -> Clone:
    """A clone with a study of one truncated step and an evaluation of 20 rows."""
    study = {
        "study": "full",
        "seeds": [3],
        "corpus": {
            "source": "toyworld",
            "stories": 200,
            "heldout_stories": 40,
            "cloze_rows": 20,
            "continuation_rows": 20,
            "block_length": 128,
        },
        "teachers": {
            "gpt2": {
                "family": "gpt2",
                "source": "hub",
                "model": "standin/gpt2",
                "revision": hub.newest["model", "standin/gpt2"],
                "blocks": 12,
                "order": [5],
                "training": {"sequences": 8, "batch_size": 4, "micro_batch": 2},
            }
        },
        "arms": {"iskd": {"method": "iskd"}},
        "tasks": {"cbt_question": {"source": "toyworld", "rows": 20}},
        "generation": None,
        "evaluation": {"efficiency": None},
    }
    clone = make_clone(tmp_path / "clone")
    (clone.folder / "full.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return clone


def test_a_step_of_gpt2_small_from_the_hub_to_the_tables(hub: HubStandin, clone: Clone) -> None:
    call = ("--configfile", "full.yaml", "-c", "2")
    with hub.serving():
        environment = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1"}
        cache = str(clone.folder / "cache")
        done = clone.snakemake("prefetch", *call, HF_HOME=cache, **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    done = clone.snakemake(*call, prefix=without_network() or ())
    assert done.returncode == 0, done.stderr[-4000:]
    step = clone.folder / "results/full/substitute_block/gpt2/iskd/seed_3/step_01"
    config = GPT2Config()
    assert AutoModelForCausalLM.from_pretrained(step.parents[4] / "download_model/gpt2")
    sizes = resolve_sizes(config)
    inner = sizes.width  # type: ignore[union-attr]
    assert (inner, sizes.heads) == (128, 2)
    counted = read_manifest(step).summary["parameters"]
    with safe_open(step / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert sum(torch.Size(shape).numel() for shape in shapes) == counted < GPT2_SMALL
    run = json.loads((step / "run.json").read_text(encoding="utf-8"))
    print(f"GPT-2 small, one step of 2 x 4 sequences: {run['peak_memory_mb']} MB at most")
    assert run["peak_memory_mb"] > 16 * counted // 10**6
    answers = clone.folder / "results/full/evaluate/gpt2/iskd/seed_3/step_01/cbt_question"
    result = json.loads((answers / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["acc"]["n"] == 20
    assert (clone.folder / "results/full/paper/table_main.csv").exists()


def test_a_step_of_phi_1_at_full_width() -> None:
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32}
    whole = PhiConfig(vocab_size=51200, num_hidden_layers=24, **shape)
    assert plan_memory(whole, 1, 8).weights == 4 * PHI_1
    config = PhiConfig(vocab_size=51200, num_hidden_layers=2, **shape)
    torch.manual_seed(1)
    teacher = AutoModelForCausalLM.from_config(config)
    model, block = replace_block(teacher, 1, resolve_sizes(config), "paper", seed=1)
    before = teacher.num_parameters()
    del teacher
    sequences = torch.randint(51200, (2, 64), dtype=torch.int32)
    settings = replace(SETTINGS, batch_size=2, precision="bfloat16", checkpointing=True)
    history = fine_tune(model, sequences, settings, seed=1, compact=[block])
    assert model.num_parameters() < before
    assert [row["step"] for row in history] == [1]
    # Random weights know nothing: the loss is that of a guess.
    assert history[0]["loss"] == pytest.approx(torch.tensor(51200.0).log().item(), abs=0.5)
