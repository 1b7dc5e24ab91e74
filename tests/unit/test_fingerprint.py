"""The digest of a rule's code: what changes it, and what does not."""

import ast
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from iskd.provenance import fingerprint

SOURCE = Path(__file__).resolve().parents[2] / "scripts"
RULES = sorted(path.stem for path in SOURCE.glob("*.py"))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of the scripts that may be edited."""
    copy = tmp_path / "scripts"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    use(copy, monkeypatch)
    return copy


def use(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "SCRIPTS", scripts)
    monkeypatch.setattr(fingerprint, "LIBRARY", scripts / "iskd")


def forget() -> None:
    for name in ("_parsed", "_imported", "_next_files", "_file_digest"):
        getattr(fingerprint, name).cache_clear()


def digest(rule: str) -> str:
    """Compute anew: within one run of Snakemake files are parsed only once."""
    forget()
    return fingerprint.code_fingerprint(rule)


def digests() -> dict[str, str]:
    """Compute those of all rules, as one run of Snakemake does."""
    forget()
    return {rule: fingerprint.code_fingerprint(rule) for rule in RULES}


def reached(rule: str) -> set[str]:
    files = fingerprint.code_files(fingerprint.SCRIPTS / f"{rule}.py")
    return {file.relative_to(fingerprint.SCRIPTS).as_posix() for file in files}


@pytest.fixture(autouse=True)
def _no_stale_cache() -> None:
    forget()


def test_every_script_has_a_digest_of_its_own() -> None:
    found = set(digests().values())
    assert len(found) == len(RULES) > 10
    assert all(len(d) == 16 and int(d, 16) >= 0 for d in found)


def test_a_copy_elsewhere_has_the_same_digests(tmp_path: Path) -> None:
    here = digests()
    with pytest.MonkeyPatch.context() as patch:
        copy = tmp_path / "elsewhere" / "deep"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        use(copy, patch)
        assert digests() == here


def change(path: Path, edit: Callable[[str], str]) -> None:
    before = path.read_text()
    after = edit(before)
    assert after != before
    path.write_text(after)


VERSIONS = [f"python3.{minor}" for minor in range(11, 16)]
ASK = """
import runpy, sys
found = runpy.run_path(sys.argv[1])["code_fingerprint"]
print(*(found(rule) for rule in sys.argv[2:]))
"""


def _other_pythons() -> list[str]:
    """Find other interpreters that start; some are only a name that leads nowhere."""
    found = [path for name in VERSIONS if (path := shutil.which(name))]
    return [
        path
        for path in found
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


def test_other_versions_of_python_give_the_same_digests() -> None:
    rules = ["evaluate", "substitute_block", "figure_loss"]
    pythons = _other_pythons()
    if not pythons:
        pytest.skip(f"none of {', '.join(VERSIONS)} is there")
    script = SOURCE / "iskd/provenance/fingerprint.py"
    for python in pythons:
        done = subprocess.run(
            [python, "-c", ASK, str(script), *rules], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [digest(rule) for rule in rules]


def test_fields_that_a_later_python_adds_change_nothing(scripts: Path) -> None:
    before = digest("evaluate")
    parsed = fingerprint._parsed

    @cache
    def later(path: Path) -> ast.Module:
        tree = parsed(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node._fields = (*type(node)._fields, "type_params", "further")  # type: ignore[misc]
                node.type_params, node.further = [], None  # type: ignore[attr-defined]
        return tree

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_parsed", later)
        assert digest("evaluate") == before


LOOK_ONLY: dict[str, Callable[[str], str]] = {
    "a comment": lambda text: text + "\n# a last word\n",
    "blank lines": lambda text: text.replace("\n\n\ndef ", "\n\n\n\n\ndef ", 1),
    "the module's docstring": lambda text: text.replace('"""', '"""More. ', 1),
    "a function's docstring": lambda text: text.replace('"""Read ', '"""Take ', 1),
    "a docstring removed": lambda text: text[text.index('"""', 3) + 3 :],
    "a text below a constant": lambda text: text.replace(
        "\n\n\ndef ", '\n\nWIDTH: int\n"""How wide."""\n\n\ndef ', 1
    ).replace("\n\nWIDTH: int\n", "\n\n", 1),
    "layout": lambda text: text.replace('.open(encoding="utf-8")', '.open(\n encoding="utf-8",)'),
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "a comment at a line's end": lambda text: text.replace(":\n", ":  # so\n", 1),
}


@pytest.mark.parametrize("name", LOOK_ONLY)
def test_an_edit_of_the_looks_keeps_the_digest(name: str, scripts: Path) -> None:
    before = digest("split_corpus")
    change(scripts / "iskd" / "data" / "texts.py", LOOK_ONLY[name])
    assert digest("split_corpus") == before


def test_texts_below_constants_may_be_reworded(scripts: Path) -> None:
    before = digest("prepare_task")
    change(
        scripts / "iskd" / "data" / "rows.py",
        lambda text: text.replace('"""What stands for', '"""This stands for'),
    )
    assert digest("prepare_task") == before


SEMANTIC: dict[str, tuple[str, str, str, str]] = {
    "the script": ("tune_teacher", "tune_teacher.py", 'folder("teacher")', 'folder("other")'),
    "directly imported": (
        "tune_teacher",
        "iskd/baselines/tuning.py",
        "compact=compact",
        "compact=()",
    ),
    "imported by an import": (
        "tune_teacher",
        "iskd/training/optimizer.py",
        "parameter.ndim >= 2",
        "parameter.ndim >= 1",
    ),
    "an indented import's module": (
        "substitute_block",
        "iskd/models/modeling/iskd_blocks.py",
        "hidden_states + written",
        "hidden_states - written",
    ),
    "a package's front": (
        "substitute_block",
        "iskd/models/__init__.py",
        "\nregister()\n",
        "\nregister(), 1\n",
    ),
    "what every script uses": (
        "split_corpus",
        "iskd/runtime/process.py",
        '"0" if network',
        '"2" if network',
    ),
    "what is started by its name": (
        "split_corpus",
        "iskd/runtime/worker.py",
        "return 0 if",
        "return 2 if",
    ),
    "a text that is used": (
        "split_corpus",
        "iskd/data/texts.py",
        "not UTF-8 text",
        "no UTF-8 text",
    ),
    "a default": (
        "evaluate",
        "iskd/evaluation/harness.py",
        "fewshot: int = 0",
        "fewshot: int = 5",
    ),
}


@pytest.mark.parametrize("name", SEMANTIC)
def test_a_change_of_meaning_changes_the_digest(name: str, scripts: Path) -> None:
    rule, file, old, new = SEMANTIC[name]
    before = digest(rule)
    change(scripts / file, lambda text: text.replace(old, new, 1))
    assert digest(rule) != before


@pytest.mark.parametrize(
    ("rule", "file"),
    [
        ("split_corpus", "iskd/training/loop.py"),
        ("split_corpus", "iskd/models/modeling/iskd_gpt2.py"),
        ("evaluate", "iskd/training/loop.py"),
        ("substitute_block", "iskd/audit/__init__.py"),
        ("substitute_block", "iskd/baselines/l1_pruning.py"),
        ("substitute_block", "iskd/paper/figures/canvas.py"),
        ("substitute_block", "prune_l1.py"),
        ("substitute_block", "iskd/config/schema.py"),
        ("train_tokenizer", "iskd/data/toyworld/stories.py"),
        # The teacher says the same, whatever is made of it.
        ("record_teacher", "iskd/training/loop.py"),
        ("record_teacher", "iskd/training/chunked.py"),
    ],
)
def test_a_module_that_is_not_imported_does_not_count(rule: str, file: str, scripts: Path) -> None:
    before = digest(rule)
    change(scripts / file, lambda text: text + "\nNEW = 1\n")
    assert digest(rule) == before


@pytest.mark.parametrize(
    "file",
    ["cbt.py", "cbt_question.yaml", "_cbt.yaml"],
)
def test_the_task_files_count_for_the_evaluation(file: str, scripts: Path) -> None:
    before = digest("evaluate")
    change(scripts / "iskd" / "evaluation" / "tasks" / file, lambda text: text + "\nnew: int\n")
    assert digest("evaluate") != before


def test_style_files_count_for_figures_only(scripts: Path) -> None:
    before = digest("figure_tradeoff"), digest("evaluate")
    change(scripts / "iskd" / "paper" / "iskd.mplstyle", lambda text: text + "\nfont.size: 30\n")
    assert digest("figure_tradeoff") != before[0]
    assert digest("evaluate") == before[1]


def test_a_new_data_file_counts_and_caches_do_not(scripts: Path) -> None:
    before = digest("figure_tradeoff")
    cache = scripts / "iskd" / "paper" / "__pycache__"
    cache.mkdir()
    (cache / "figures.cpython-311.pyc").write_bytes(b"x")
    assert digest("figure_tradeoff") == before
    (scripts / "iskd" / "paper" / "more.mplstyle").write_text("font.size: 1\n")
    assert digest("figure_tradeoff") != before


def test_touching_a_file_keeps_the_digest(scripts: Path) -> None:
    before = digest("split_corpus")
    (scripts / "iskd" / "data" / "texts.py").touch()
    assert digest("split_corpus") == before


def test_moving_code_to_another_module_changes_the_digest(scripts: Path) -> None:
    before = digest("split_corpus")
    data = scripts / "iskd" / "data"
    (data / "texts.py").rename(data / "stories.py")
    change(
        scripts / "split_corpus.py",
        lambda text: text.replace("iskd.data.texts", "iskd.data.stories"),
    )
    assert digest("split_corpus") != before
    assert "iskd/data/stories.py" in reached("split_corpus")


def test_relative_imports_of_model_files_are_followed(scripts: Path) -> None:
    """They are copied into saved folders, where their package has no name."""
    modeling = scripts / "iskd" / "models" / "modeling"
    found = fingerprint._imported(modeling / "iskd_phi.py")
    assert "iskd.models.modeling.iskd_blocks" in found
    further = fingerprint._imported(modeling / "iskd_blocks.py")
    assert "iskd.models.modeling.iskd_narrow" in further


def test_the_library_imports_itself_by_full_names_elsewhere() -> None:
    """An import from further up would be overlooked, and so would a module loaded by its name."""
    import ast

    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_bytes())
        levels = [n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert max(levels, default=0) <= (file.parent.name == "modeling"), file.name
        if file != SOURCE / "iskd" / "__init__.py":
            assert "import_module" not in file.read_text(), file.name
