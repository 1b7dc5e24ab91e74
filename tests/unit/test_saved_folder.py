"""A saved folder in other hands: without this package, and in lm-eval's own command line."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from iskd.data.corpus import train_tokenizer
from iskd.models import CompactSizes, NarrowSizes, family_of
from iskd.models.folder import load_model, save_model
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.arange(1, 20)[None]
# Two inner layers: the cache has slots that the outer model knows nothing of.
SIZES = CompactSizes(width=8, heads=1, blocks=2, mlp=12, positions=POSITIONS)
RELATIVES = dict.fromkeys(["llama", "mistral", "qwen2", "qwen3"], "iskd_llama.py")
COMMON = {"iskd_adapter.py", "iskd_blocks.py", "iskd_narrow.py"}
FILES = {family: RELATIVES.get(family, f"iskd_{family}.py") for family in FAMILIES}


def build(tiny_model: MakeModel, family: str, **changes: Any) -> PreTrainedModel:
    narrow = NarrowSizes(SHARE.get(family, 1), 17)
    return tiny_model(family, compact={0: SIZES}, narrow={2: narrow}, **changes)


def stranger(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where nothing of this package can be imported."""
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'iskd':\n"
        "            raise ModuleNotFoundError('iskd is not here')\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    own = {key: os.environ[key] for key in kept if key in os.environ}
    own |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    program, *rest = arguments
    return subprocess.run(
        [sys.executable, "-I", "-c", blocker + program, *rest],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_holds_the_code_and_says_so(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    model = build(tiny_model, family)
    model.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.glob("*.py")}
    assert written == {*COMMON, FILES[family]}
    source = ROOT / "scripts" / "iskd" / "models" / "modeling"
    for name in written:
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    module = Path(FILES[family]).stem
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": f"{module}.{type(model.config).__name__}",
        "AutoModelForCausalLM": f"{module}.{type(model).__name__}",
    }


def test_the_copied_files_need_no_package_of_ours() -> None:
    for path in (ROOT / "scripts" / "iskd" / "models" / "modeling").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
                assert node.level == 0 or (node.module or "").startswith("iskd_")
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                assert top in {"torch", "transformers"} | sys.stdlib_module_names, (path, name)


def test_strangers_load_the_folders_and_generate(tmp_path: Path, tiny_model: MakeModel) -> None:
    for family in FAMILIES:
        model = build(tiny_model, family)
        folder = tmp_path / family
        model.save_pretrained(folder)
        with torch.no_grad():
            logits = model(IDS).logits
        tokens = model.generate(
            IDS[:, :9], max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        torch.save({"logits": logits, "tokens": tokens}, folder / "wanted.pt")
    done = stranger(
        tmp_path,
        "import torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.set_num_threads(1)\n"
        "ids = torch.arange(1, 20)[None]\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "    wanted = torch.load(folder + '/wanted.pt')\n"
        "    with torch.no_grad():\n"
        "        same = torch.equal(model(ids).logits, wanted['logits'])\n"
        "    tokens = model.generate(ids[:, :9], max_new_tokens=9, do_sample=False,\n"
        "                            pad_token_id=0, eos_token_id=None)\n"
        "    model.save_pretrained(folder + '/again')\n"
        "    print(type(model).__module__.split('.')[0], same,\n"
        "          torch.equal(tokens, wanted['tokens']))\n"
        "assert not any(name.split('.')[0] == 'iskd' for name in sys.modules)\n",
        *(str(tmp_path / family) for family in FAMILIES),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["transformers_modules True True"] * len(FAMILIES)
    # What a stranger saves is again a whole folder.
    for family in FAMILIES:
        again = tmp_path / family / "again"
        assert {path.name for path in again.glob("*.py")} == {*COMMON, FILES[family]}
        read = load_model(again).cpu()
        with torch.no_grad():
            wanted = torch.load(tmp_path / family / "wanted.pt")["logits"]
            assert torch.equal(read(IDS).logits, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_package_a_folders_code_is_never_run(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    model = build(tiny_model, family)
    model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.py"):
        path.write_text("raise RuntimeError('code of a folder was run')\n")
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(model)
    assert type(read).__module__.startswith("iskd.models.modeling.")
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, model(IDS).logits)
    # Not even for somebody who asks for it.
    for flag in (True, False):
        config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=flag)
        assert family_of(config).compact_config is type(config)
        trusted = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=flag)
        assert type(trusted) is type(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_is_saved_and_read_is_the_same_file(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    build(tiny_model, family, dropout=0.125).save_pretrained(tmp_path / "model")
    written = (tmp_path / "model" / "config.json").read_bytes()
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.save_pretrained(tmp_path / "first")
    AutoConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("first", "second"):
        assert (tmp_path / name / "config.json").read_bytes() == written
    assert str(tmp_path).encode() not in written


def trusting(path: Path) -> Iterator[int]:
    """Give the lines of a Python file that could have a folder's code run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        # A docstring may say what others have to pass.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            yield node.value.lineno
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in docstrings else None
        if isinstance(text, str) and "trust_remote_code" in text:
            yield node.lineno  # type: ignore[attr-defined]


def _without_texts(path: Path) -> str:
    """Give a Python file's code with its strings emptied."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


def test_the_check_for_trust_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '"""trust_remote_code=True is for strangers."""\n'
        "load(folder, trust_remote_code=True)\n"
        "harness('pretrained=x,trust_remote_code=True')\n"
        "load(**{'trust_remote_code': True})\n"
    )
    assert sorted(trusting(file)) == [2, 3, 4]


def test_nothing_of_ours_trusts_a_folders_code() -> None:
    found: list[str] = []
    for top in ("scripts", "workflow", "config"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.name == "card.py":
                # What a card tells its readers to type is a text, and calls nothing.
                assert ".from_pretrained(" not in _without_texts(path)
                continue
            if path.suffix == ".py":
                found += [f"{path}:{line}" for line in trusting(path)]
                continue
            read = path.suffix in (".smk", ".yaml", ".yml", ".json", "") and path.is_file()
            if read and "trust_remote_code" in path.read_text(encoding="utf-8"):
                found.append(str(path))
    assert not found


QUESTIONS = [
    ("Once there was a", ["fox.", "hen on a hat."]),
    ("The hen sat on the", ["red hat.", "end."]),
    ("The fox's", ["hat.", "hen sat there."]),
    ("The end", [" was red.", "."]),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = ["Once there was a fox.", "The hen sat on the fox's red hat. The end."] * 5
    return train_tokenizer(texts, vocabulary=270, length=POSITIONS)


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, tokenizer: Any, context: str, ending: str) -> float:
    start, whole = (tokenizer(t)["input_ids"] for t in (context, context + ending))
    logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(start), len(whole)))


def test_lm_evals_own_command_line_takes_the_folder(
    tmp_path: Path, tiny_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nothing of ours runs there: the folder is as good as any other of the Hub."""
    family = "qwen3"
    model = build(tiny_model, family, vocab_size=len(tokenizer))
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder)
    rows = [{"q": q, "a": a, "label": 0} for q, a in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_choice.yaml").write_text(
        "task: tiny_choice\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\n"
        "doc_to_choice: '{{a}}'\n"
        "doc_to_target: '{{label}}'\n"
        "target_delimiter: ' '\n"
        "metric_list: [{metric: acc}]\n"
    )
    done = stranger(
        tmp_path,
        "import runpy\n"
        "sys.argv[0] = 'lm_eval'\n"
        "runpy.run_module('lm_eval', run_name='__main__', alter_sys=True)\n",
        "--model=hf",
        f"--model_args=pretrained={folder},trust_remote_code=True,dtype=float32",
        "--tasks=tiny_choice",
        f"--include_path={tmp_path}",
        "--limit=4",
        "--device=cpu",
        "--log_samples",
        f"--output_path={tmp_path / 'found'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "found").rglob("results_*.json")
    (samples,) = (tmp_path / "found").rglob("samples_*.jsonl")
    right = 0
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        found = [float(answer[0][0]) for answer in line["resps"]]
        wanted = [
            log_likelihood(model, tokenizer, line["doc"]["q"], f" {answer}")
            for answer in line["doc"]["a"]
        ]
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-3)
        right += wanted[0] > wanted[1]
    accuracy = json.loads(results.read_text())["results"]["tiny_choice"]["acc,none"]
    assert accuracy == pytest.approx(right / 4)
