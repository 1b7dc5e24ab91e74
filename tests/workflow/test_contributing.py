"""What CONTRIBUTING.md lists is all there is to do: each list is followed in a copy."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import OlmoConfig

from .conftest import ROOT, TINY, Clone, make_clone

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = ("workflow", "scripts", "config", "docs", "tests/unit", "tests/config")
STEP = "toy/{arm}/seed_3/step_02"
# What a name in angle brackets stands for.
DUMMIES = {
    "family": {"name": "olmo"},
    "baseline": {"name": "random_drop", "rule": "drop_at_random"},
    "task": {"name": "cbt_last"},
    "figure": {"name": "sizes"},
}


def items(what: str) -> list[str]:
    """Give the numbered items of one list."""
    section = PAGE.split(f"## Add a {what}\n")[1].split("\n## ")[0]
    found = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(found) == len(re.findall(r"^\d\. ", section, re.MULTILINE)) > 2
    return found


def named_files(what: str) -> set[str]:
    """Give the files that a list names, with the dummy's names filled in."""
    names = re.findall(r"`([\w<>.-]+(?:/[\w<>.-]+)+\.\w+)`", " ".join(items(what)))
    for key, value in DUMMIES[what].items():
        names = [name.replace(f"<{key}>", value) for name in names]
    return set(names)


def texts(top: Path) -> Iterator[tuple[str, bytes]]:
    for part in PARTS:
        for path in (top / part).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".smk", ".yaml", ".md", ".rst"):
                yield path.relative_to(top).as_posix(), path.read_bytes()


class Follower(Clone):
    """A copy in which a list is followed."""

    def write(self, file: str, text: str) -> None:
        assert not (self.folder / file).exists()
        (self.folder / file).write_text(text, encoding="utf-8")

    def read(self, file: str) -> str:
        return (self.folder / file).read_text(encoding="utf-8")

    def after(self, file: str, old: str, more: str) -> None:
        self.edit(file, old, old + more)

    def python(self, *arguments: str) -> str:
        """Run Python with the copy's library, and give what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{self.folder / 'scripts'}:{self.folder}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def check_files(self, what: str) -> None:
        """Compare the files that were changed with those that the list names."""
        changed = set(texts(self.folder)) - set(texts(ROOT))
        assert {name for name, _ in changed} == named_files(what)

    def make(self, target: str) -> dict[str, object]:
        """Make one artifact and give its manifest."""
        done = self.snakemake(target, *TINY)
        assert done.returncode == 0, done.stderr[-4000:]
        manifest: dict[str, object] = json.loads(self.read(target))
        return manifest


@pytest.fixture
def empty(tmp_path: Path) -> Follower:
    """A copy without results."""
    return with_docs(make_clone(tmp_path / "clone").folder)


@pytest.fixture
def done(finished: Clone, tmp_path: Path) -> Follower:
    """A copy with the smallest study in it, finished."""
    return with_docs(finished.copy(tmp_path / "clone").folder)


def with_docs(folder: Path) -> Follower:
    for part in ("docs", "tests/unit"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder / file)
    return Follower(folder)


NEW_FAMILY = '''
"""OLMo: rotary positions, gated MLP, norms without weights."""

from typing import Any

from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM
from transformers.models.olmo.modeling_olmo import (
    OlmoDecoderLayer,
    OlmoLayerNorm,
    OlmoRotaryEmbedding,
)

from .iskd_blocks import (
    Adapter,
    CompactConfigMixin,
    CompactModelMixin,
    Cut,
    register_for_folders,
)


def _norm(config: Any, width: int) -> nn.Module:
    return OlmoLayerNorm(width)


class CompactOlmoConfig(CompactConfigMixin, OlmoConfig):
    """An OLMo config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_olmo"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactOlmoForCausalLM(CompactModelMixin, OlmoForCausalLM):
    """OLMo whose config lists changed blocks; all else is the library's own class."""

    config_class = CompactOlmoConfig
    adapter = Adapter(
        name="olmo",
        layer=OlmoDecoderLayer,
        blocks_path="model.layers",
        attention="self_attn",
        norm=_norm,
        mlp_width="intermediate_size",
        head_cuts=(
            *(Cut(f"self_attn.{p}_proj.weight", 0) for p in "qkv"),
            Cut("self_attn.o_proj.weight", 1),
        ),
        neuron_cuts=(
            *(Cut(f"mlp.{p}_proj.weight", 0) for p in ("gate", "up")),
            Cut("mlp.down_proj.weight", 1),
        ),
        writers=("self_attn.o_proj", "mlp.down_proj"),
        norms=("input_layernorm", "post_attention_layernorm"),
        rotary=OlmoRotaryEmbedding,
    )


register_for_folders(CompactOlmoConfig, CompactOlmoForCausalLM)
'''


def test_a_family(empty: Follower) -> None:
    assert OlmoConfig.model_type == "olmo"  # the library's own: nothing here knows it
    empty.write("scripts/iskd/models/modeling/iskd_olmo.py", NEW_FAMILY.lstrip())
    families = "scripts/iskd/models/families.py"
    empty.after(families, "    CompactGPTNeoXForCausalLM,\n", "    CompactOlmoForCausalLM,\n")
    empty.after(
        families,
        "from iskd.models.modeling.iskd_phi import CompactPhiForCausalLM\n",
        "from iskd.models.modeling.iskd_olmo import CompactOlmoForCausalLM\n",
    )
    empty.edit(
        "scripts/iskd/config/schema.py", '"qwen3", "gpt_neox"]', '"qwen3", "gpt_neox", "olmo"]'
    )
    empty.python("tools/config_docs.py")
    rules = "scripts/iskd/config/block_rules.py"
    empty.edit(rules, '"gpt_neox": 8, ', '"gpt_neox": 8, "olmo": 2, ')
    empty.after(
        "docs/methods.md", "|---|---|---|---|\n", "| `olmo` | `OlmoForCausalLM` | rotary | |\n"
    )
    empty.check_files("family")

    study = empty.read("tests/config/tiny.yaml").replace("family: gpt2", "family: olmo")
    empty.write("olmo.yaml", study)
    assert empty.planned("--configfile", "olmo.yaml")["substitute_block"] == 2
    # The tests of the models run on it, without an option.
    tests = ("test_saved_folder.py", "test_substitution.py")
    options = ("-q", "-k", "olmo", "-p", "no:cacheprovider", "-W", "ignore")
    output = empty.python("-m", "pytest", *options, *(f"tests/unit/{name}" for name in tests))
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) > 5


NEW_BASELINE = '''
"""Blocks left out at random."""

import random


def draw_influence(blocks: int, seed: int) -> list[float]:
    """Give each block a number by chance."""
    rng = random.Random(seed)
    return [rng.random() for _ in range(blocks)]
'''
NEW_ARM = '''class RandomDropArm(BaselineArm):
    """Blocks are left out at random, then the rest is tuned."""

    method: Literal["random_drop"] = Field(description="Leave out blocks at random.")
    objective: Objective = Field(
        default_factory=Objective, description="What this arm is trained to do."
    )
    salt: Seed = Field(0, description="Makes another draw of the same seed.")


'''


def test_a_baseline(done: Follower) -> None:
    done.write("scripts/iskd/baselines/random_drop.py", NEW_BASELINE.lstrip())
    script = done.read("scripts/drop_layers.py")
    imports = "from iskd.baselines.layer_drop import block_influence, drop_layers\n"
    script = script.replace(imports, imports.replace("block_influence, ", "") + NEW_IMPORT)
    script = re.sub(r"    calibration = .*\n    size = .*\n    influence = .*\n", NEW_DRAW, script)
    script = script.replace('selection, replaced = job.params["selection"], ', "replaced = ")
    script = re.sub(r"    by_steps = .*\n", "", script)
    script = script.replace("    from iskd.baselines.gaps import refit_before_gaps\n", "")
    script = re.sub(
        r"    if selection\.get.*?(?=    tune_and_publish)", "", script, flags=re.DOTALL
    )
    script = re.sub(
        r"        count=.*\n        parameters=.*\n        first=.*\n",
        "        parameters=target,\n",
        script,
    )
    done.write("scripts/drop_at_random.py", script)
    rules = "workflow/rules/baselines.smk"
    rule = re.search(
        r"use rule tune_teacher as drop_layers with:\n.*?\n\n\n", done.read(rules), re.DOTALL
    )
    assert rule is not None
    new = rule[0].replace("drop_layers", "drop_at_random").replace('"selection"', '"salt"')
    done.edit(rules, rule[0], rule[0] + new)
    schema = "scripts/iskd/config/schema.py"
    done.edit(schema, "class TeacherTunedArm", NEW_ARM + "class TeacherTunedArm")
    done.edit(schema, "| LayerDropArm |", "| LayerDropArm | RandomDropArm |")
    done.python("tools/config_docs.py")
    models, trainings = (f"scripts/iskd/plan/{name}.py" for name in ("models", "trainings"))
    for file, after in ((models, "    Study,\n"), (trainings, "    Replacing,\n")):
        done.edit(file, after, f"    RandomDropArm,\n{after}")
    done.after(
        models, '    LayerDropArm: "drop_layers",\n', '    RandomDropArm: "drop_at_random",\n'
    )
    done.edit(trainings, "        if isinstance(arm, LayerDropArm):\n", NEW_CASE)
    done.after(
        "tests/config/arms.yaml",
        "arms:\n",
        "  random_drop: {method: random_drop, reference: paper}\n",
    )
    done.after("docs/methods.md", "| `layer_drop` |", " see `random_drop` |")
    done.after(
        "workflow/documentation.md", "| `drop_layers` | baseline: ", "see `drop_at_random`, "
    )
    done.check_files("baseline")

    done.after(
        "tests/config/tiny.yaml", "  kd: {method: kd}\n", "  drop: {method: random_drop, salt: 1}\n"
    )
    planned = done.planned(*TINY)
    assert planned["drop_at_random"] == 1
    assert {"make_toyworld", "pretrain_teacher", "substitute_block"} & set(planned) == set()
    folder = f"results/tiny/drop_at_random/{STEP.format(arm='drop')}"
    done.make(f"{folder}/manifest.json")
    assert json.loads(done.read(f"{folder}/dropped.json"))["dropped"] != []
    planned = done.planned(*TINY)
    assert (planned["evaluate"], "drop_at_random" in planned) == (2, False)


NEW_IMPORT = "    from iskd.baselines.random_drop import draw_influence\n"
NEW_DRAW = (
    "    blocks = teacher.config.num_hidden_layers\n"
    "    influence = draw_influence(blocks, job.seed + job.params['salt'])\n"
)
NEW_CASE = """        if isinstance(arm, RandomDropArm):
            params["salt"] = arm.salt
        if isinstance(arm, LayerDropArm):
"""


def test_a_task(done: Follower) -> None:
    rows = '    "cbt_context": (CBT_FIELDS, _check_cbt),\n'
    done.after("scripts/iskd/data/row_kinds.py", rows, rows.replace("cbt_context", "cbt_last"))
    kinds = "scripts/iskd/evaluation/kinds.py"
    kind = re.search(
        r'            Kind\(\n +name="cbt_context".*?\n            \),\n',
        done.read(kinds),
        re.DOTALL,
    )
    assert kind is not None
    done.after(kinds, kind[0], kind[0].replace("cbt_context", "cbt_last"))
    task = done.read("scripts/iskd/evaluation/tasks/cbt_context.yaml")
    task = task.replace("cbt_context", "cbt_last").replace(
        "!function cbt.context", '"{{sentences[-1]}}"'
    )
    done.write("scripts/iskd/evaluation/tasks/cbt_last.yaml", task)
    done.after("docs/evaluation.md", "Kinds of our own are ", "`cbt_last`, ")
    done.check_files("task")

    tasks = "  cbt_context: {source: toyworld}\n"
    done.after("tests/config/tiny.yaml", tasks, "  cbt_last: {source: toyworld, rows: 3}\n")
    planned = done.planned(*TINY)
    assert planned["evaluate"] == 15
    # Evaluations are made again, by code that has changed; nothing is trained for a new task.
    assert {"make_toyworld", "pretrain_teacher", "substitute_block"} & set(planned) == set()
    assert json.loads(done.python("-c", EVALUATE))["n"] == 6


EVALUATE = """
import json
from dataclasses import asdict
from pathlib import Path
from iskd.evaluation.harness import evaluate_task
from iskd.models.folder import load_model, load_tokenizer

results = Path("results/tiny")
teacher = results / "pretrain_teacher/toy"
found = evaluate_task(
    load_model(teacher),
    load_tokenizer(teacher),
    "cbt_last",
    results / "make_toyworld/cbt.jsonl",
    batch_size=8,
    seed=1,
)
print(json.dumps(asdict(found.metrics["acc"])))
"""


def test_a_task_that_lm_eval_has_is_a_line_of_a_study(empty: Follower) -> None:
    line = re.search(r"`<task>: (\{source: lm_eval\})`", PAGE)
    assert line is not None
    empty.after("tests/config/tiny.yaml", "tasks:\n", f"  arc_easy: {line[1]}\n")
    planned = empty.planned(*TINY)
    assert (planned["download_task"], planned["evaluate"]) == (1, 15)


NEW_FIGURE = '''
"""How large each model is."""

import pandas as pd
from matplotlib.figure import Figure

from iskd.paper.figures.canvas import teacher_rows
from iskd.paper.style import paper_style


def sizes_figure(metrics: pd.DataFrame, teacher: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the parameters of one teacher's models."""
    table = teacher_rows(metrics, teacher)
    frame = table.loc[table["metric"] == "parameters", ["arm", "step", "value"]]
    with paper_style():
        figure = Figure()
        axes = figure.subplots()
        axes.bar(frame["arm"] + frame["step"].astype(str), frame["value"])
    return figure, frame
'''


def test_a_figure(done: Follower) -> None:
    done.write("scripts/iskd/paper/figures/sizes.py", NEW_FIGURE.lstrip())
    script = done.read("scripts/figure_loss.py").replace("loss", "sizes")
    done.write("scripts/figure_sizes.py", script)
    rules = "workflow/rules/paper.smk"
    rule = re.search(
        r"use rule figure_loss as figure_flips with:\n.*?\n\n\n", done.read(rules), re.DOTALL
    )
    assert rule is not None
    new = rule[0].replace("figure_flips", "figure_sizes").replace('"flips"', '"sizes"')
    done.after(rules, rule[0], new)
    done.edit(rules, '"flips", "order"]', '"flips", "order", "sizes"]')
    done.write("workflow/report/figure_sizes.rst", "How large each model is.\n")
    case = '        if figure == "training":\n'
    done.edit(
        "scripts/iskd/plan/jobs.py",
        case,
        f'        if figure == "sizes":\n            return bool(models)\n{case}',
    )
    done.after("workflow/documentation.md", "| `figure_tradeoff`, ", "`figure_sizes`, ")
    done.check_files("figure")

    # The paper's folder and zip take it up; nothing else is made again.
    assert done.planned(*TINY) == {"figure_sizes": 1, "collect_paper": 1, "paper_bundle": 1}
    folder = "results/tiny/figure_sizes/toy"
    done.make(f"{folder}/manifest.json")
    with (done.folder / folder / "sizes.csv").open(encoding="utf-8") as stream:
        drawn = list(csv.DictReader(stream))
    assert {row["arm"] for row in drawn} == {"teacher", "iskd", "l1", "kd"}
    assert (done.folder / folder / "sizes.pdf").read_bytes().startswith(b"%PDF")
