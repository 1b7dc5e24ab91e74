"""Draw the rule graph in workflow/documentation.md, as Snakemake derives it from the paper's study.

``python tools/rulegraph.py`` writes it, ``--check`` only says whether it is up to date (exit
code 1 if not). What obscures is left out: rules with the same neighbours share a box, arrows that a
longer way says already go, and so does the target.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "workflow" / "documentation.md"
BEGIN, END = "<!-- rule graph: begin -->", "<!-- rule graph: end -->"
STUDY = ROOT / "config" / "paper.yaml"
TARGET = "all"

Edges = set[tuple[str, str]]


def rule_edges() -> Edges:
    """Ask Snakemake which rule's output which other rule reads."""
    options = ("--rulegraph", "mermaid-js", "--quiet", "all", "--configfile", STUDY)
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(  # noqa: S603 - our own Snakefile
            [sys.executable, "-m", "snakemake", "-s", ROOT / "workflow" / "Snakefile", *options],
            cwd=empty,  # what is there already must not decide
            env={**os.environ, "ISKD_PLAN_ONLY": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(done.stderr)
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]$", done.stdout, re.MULTILINE))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)$", done.stdout, re.MULTILINE)
    edges = {(names[a], names[b]) for a, b in arrows}
    return {(a, b) for a, b in edges if TARGET not in (a, b)}


def in_boxes(edges: Edges) -> tuple[Edges, dict[str, list[str]]]:
    """Put rules with the same neighbours together: arrows between boxes, and what is in each."""
    alike: dict[tuple[frozenset[str], frozenset[str]], list[str]] = defaultdict(list)
    for name in sorted({name for edge in edges for name in edge}):
        before = frozenset(a for a, b in edges if b == name)
        after = frozenset(b for a, b in edges if a == name)
        alike[before, after].append(name)
    boxes = {group[0]: group for group in alike.values()}
    box = {name: first for first, group in boxes.items() for name in group}
    return {(box[a], box[b]) for a, b in edges}, boxes


def without_detours(edges: Edges) -> Edges:
    """Leave out the arrows that a longer way says already; loops stay."""
    after: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        if a != b:
            after[a].add(b)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in after[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    beyond = {name: reached(name) for name in list(after)}
    return {
        (a, b)
        for a, b in edges
        if a == b or not any(b in beyond.get(c, ()) for c in after[a] - {b})
    }


def graph_text() -> str:
    """Give the graph, as Mermaid reads it."""
    edges, boxes = in_boxes(rule_edges())
    lines = [f'    {b}["{"<br>".join(names)}"]' for b, names in boxes.items() if len(names) > 1]
    lines += [f"    {a} --> {b}" for a, b in sorted(without_detours(edges))]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def page_text() -> str:
    """Give the page with its graph made anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{graph_text()}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write or check the page."""
    text = page_text()
    if text == PAGE.read_text(encoding="utf-8"):
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.relative_to(ROOT)} does not show the rules as they are: run `make docs`")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
