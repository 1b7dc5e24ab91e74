"""Every command in the docs is one that its program takes; those that make something run elsewhere.

The walk-through of docs/compress.md runs in tests/integration, README's two commands in CI, a part
of the rest in the tests of what they are about. Here all of them are parsed as they are written.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from iskd.cli import make_parser

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "config/README.md", "workflow/documentation.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
# In a sentence: what begins like a call and holds no invented part.
_INLINE = re.compile(r"`((?:snakemake|make|iskd|python -m) [^`]+)`")
_SYSTEM = (
    *("squeue", "scancel", "export", "cd", "openssl", "git", "sbatch"),
    *("docker", "apptainer", "snakedeploy"),
)
TWO = ("diff", "speculate", "export-plain", "export-gguf", "export-onnx", "quantise")


def commands(page: str) -> Iterator[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in _BLOCK.findall(text):
        yield from (line.split(" #")[0].strip() for line in block.splitlines() if line.strip())
    yield from (call for call in _INLINE.findall(text) if "..." not in call)


ALL = sorted({(page, command) for page in PAGES for command in commands(page) if command})


@pytest.mark.parametrize(("page", "command"), ALL)
def test_a_documented_command_is_one(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # <this> stands for a reader's own.
    filled = re.sub(r"\b(TOKENS|N)\b", "8", re.sub(r"<[^>]+>", "mine", command))
    words = shlex.split(filled, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in arguments if "=" not in word):
            assert target == ".venv/.installed" or f"\n{target}:" in makefile
    elif program == "snakemake":
        from snakemake.cli import parse_args

        _, parsed = parse_args(arguments)
        for file in parsed.configfile or []:
            assert Path(file).exists() or Path(file).name == "mine.yaml"  # a reader's own
    elif program == "iskd":
        if len([word for word in arguments if not word.startswith("-")]) == 1:
            # It is only spoken of, without what it is to be about.
            others = {"sign": ["study", "--key", "key.pem"]}
            others |= {name: ["one", "other"] for name in TWO}
            arguments += others.get(arguments[0], ["study"])
            arguments += {"export": ["--licence", "MIT"], "memory": ["--length", "8"]}.get(
                arguments[0], []
            )
        make_parser().parse_args(arguments)
    elif program == "python" and arguments[0].startswith("tools/"):
        assert (ROOT / arguments[0]).is_file()
    elif program == "python":
        assert arguments[0] == "-m"
        assert find_spec(arguments[1]) is not None
    else:
        assert program in (*_SYSTEM, "pre-commit")


def test_there_are_commands() -> None:
    assert len(ALL) > 40
    assert {page for page, _ in ALL} >= {"README.md", "CONTRIBUTING.md", "docs/audit.md"}
