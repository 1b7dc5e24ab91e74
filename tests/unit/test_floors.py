"""Imports between the library's modules: down the floors of CONTRIBUTING.md, without a circle."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
PACKAGE = "iskd"
Graph = Mapping[str, set[str]]


class Import(NamedTuple):
    """What a file imports: a module or a name in it; for type checkers alone, or when it runs."""

    name: str
    for_types: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """Find all imports in a module's text.

    Args:
        source: the text.
        package: the package that the module lies in.
    """
    yield from _imports(ast.parse(source), package.split("."), for_types=False)


def _imports(node: ast.AST, package: list[str], *, for_types: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, for_types) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) + 1 - node.level] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (Import(f"{base}.{alias.name}", for_types) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, package, for_types=True)
        for statement in node.orelse:
            yield from _imports(statement, package, for_types=for_types)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, for_types=for_types)


def graph(modules: Mapping[str, list[Import]], *, for_types: bool) -> dict[str, set[str]]:
    """Give the modules that each module imports.

    Args:
        modules: every module's imports.
        for_types: whether those count that only type checkers see.
    """
    found: dict[str, set[str]] = {name: set() for name in modules}
    for module, imported in modules.items():
        for name, types_only in imported:
            # A name in a module stands for the module.
            whole = name if name in modules else name.rpartition(".")[0]
            if whole in modules and whole != module and (for_types or not types_only):
                found[module].add(whole)
    return found


def circle(arrows: Graph) -> list[str]:
    """Give the modules of a circle, the first one again at the end; none where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def floors(page: str) -> dict[str, int]:
    """Read on which floor each package lies, 0 the lowest, from the fenced block of a page."""
    block = re.search(r"^```floors\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None, "the page has no block of floors"
    lines = [line.split() for line in block[1].splitlines()]
    named = [name for line in lines for name in line]
    assert len(named) == len(set(named)), "a package lies on two floors"
    return {name: floor for floor, line in enumerate(lines) for name in line}


def upwards(arrows: Graph, floor: Mapping[str, int]) -> list[str]:
    """List the imports from a higher floor, as "module imports module"."""
    return sorted(
        f"{one} imports {other}"
        for one, others in arrows.items()
        for other in others
        if floor[part(one)] < floor[part(other)]
    )


def between_parts(arrows: Graph) -> dict[str, set[str]]:
    """Give which package imports which other one."""
    found: dict[str, set[str]] = {}
    for one, others in arrows.items():
        found.setdefault(part(one), set()).update(part(other) for other in others)
    return {name: others - {name} for name, others in found.items()}


def part(module: str) -> str:
    """Give the package, or the module beside the packages, that a module belongs to."""
    return module.split(".")[1]


def library() -> dict[str, list[Import]]:
    """Read the imports of all modules but the top package, which only registers model types."""
    found = {}
    for file in sorted((SCRIPTS / PACKAGE).rglob("*.py")):
        parts = file.relative_to(SCRIPTS).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = package if parts[-1] == "__init__" else ".".join(parts)
        if name != PACKAGE:
            found[name] = list(imports(file.read_text(encoding="utf-8"), package))
    return found


LIBRARY = library()
FLOORS = floors((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_no_import_closes_a_circle() -> None:
    assert circle(graph(LIBRARY, for_types=False)) == []


def test_no_import_leads_upwards() -> None:
    assert upwards(graph(LIBRARY, for_types=True), FLOORS) == []


def test_packages_of_one_floor_import_each_other_one_way() -> None:
    assert circle(between_parts(graph(LIBRARY, for_types=True))) == []


def test_every_package_lies_on_a_floor() -> None:
    assert {part(module) for module in LIBRARY} == set(FLOORS)


def test_importing_the_runtime_needs_nothing_above_it() -> None:
    found = between_parts(graph(LIBRARY, for_types=True))["runtime"]
    assert found <= {"provenance", "errors", "devices", "progress"}


# --- the checker itself ---------------------------------------------------------------------

MODULE = """
import iskd.low.a
from iskd.low import b as renamed
from iskd.low.b import word
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from iskd.high.job import Job
else:
    import iskd.low.c
def later():
    try:
        from iskd.high import job
    except ImportError:
        from . import beside
        from .beside import word
        from ..low import d
"""


def test_imports_are_found_wherever_they_stand() -> None:
    found = [i for i in imports(MODULE, "iskd.middle") if i.name.startswith(PACKAGE)]
    assert found == [
        ("iskd.low.a", False),
        ("iskd.low.b", False),
        ("iskd.low.b.word", False),
        ("iskd.high.job.Job", True),
        ("iskd.low.c", False),
        ("iskd.high.job", False),
        ("iskd.middle.beside", False),
        ("iskd.middle.beside.word", False),
        ("iskd.low.d", False),
    ]


def made_up(**imported: list[str]) -> dict[str, list[Import]]:
    """Make modules ``iskd.<name>`` with imports; those with a ``~`` are for type checkers alone."""
    return {
        f"iskd.{module.replace('__', '.')}": [
            Import(f"iskd.{name.lstrip('~')}", name.startswith("~")) for name in names
        ]
        for module, names in imported.items()
    }


PAGE = "text\n\n```floors\nlow side\nhigh\n```\n\n```sh\nmake test\n```\n"


@pytest.mark.parametrize(
    ("modules", "circles", "wrong"),
    [
        (made_up(high__a=["low.a", "high.b"], high__b=[], low__a=["side"], side=[]), [], []),
        (made_up(low__a=["low.b.word"], low__b=["low.a"]), ["iskd.low.a", "iskd.low.b"], []),
        (made_up(low__a=["side"], side=["low.a"]), ["iskd.low.a", "iskd.side"], []),
        (made_up(low__a=["~low.b"], low__b=["low.a"]), [], []),
        (made_up(low__a=["high.a"], high__a=[]), [], ["iskd.low.a imports iskd.high.a"]),
        (made_up(side=["~high.a.Job"], high__a=[]), [], ["iskd.side imports iskd.high.a"]),
        (made_up(low=["low.a"], low__a=["low.word"]), ["iskd.low", "iskd.low.a"], []),
    ],
)
def test_the_checker_finds_what_is_wrong(
    modules: dict[str, list[Import]], circles: list[str], wrong: list[str]
) -> None:
    assert sorted(set(circle(graph(modules, for_types=False)))) == circles
    assert upwards(graph(modules, for_types=True), floors(PAGE)) == wrong


def test_packages_that_import_each_other_are_found_without_a_circle_of_modules() -> None:
    modules = made_up(low__a=["side"], side=[], low__b=[], side__c=["low.b"])
    assert circle(graph(modules, for_types=True)) == []
    assert circle(between_parts(graph(modules, for_types=True))) != []


@pytest.mark.parametrize("page", ["no block", "```floors\nlow\nlow high\n```\n"])
def test_a_page_that_does_not_say_the_floors_is_refused(page: str) -> None:
    with pytest.raises(AssertionError):
        floors(page)
