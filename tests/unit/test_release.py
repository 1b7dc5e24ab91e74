"""What a public repository says about itself: version, licences, pages and workflows agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.docs_site import linked, pages

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names a Python function."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: "a function")


def site() -> dict[str, Any]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, Loader=_Loader)  # noqa: S506 - safe, see above
    return found


def test_one_version_is_named_everywhere() -> None:
    released = re.findall(r"^## ([0-9.]+) - ([0-9-]+)$", CHANGELOG, re.MULTILINE)
    assert released[0][0] == CITATION["version"]
    # A date of release comes with the tag.
    assert CITATION.get("date-released", released[0][1]) == released[0][1]
    assert PROJECT["project"]["version"] == CITATION["version"]
    assert CHANGELOG.index("## Unreleased") < CHANGELOG.index(f"## {released[0][0]}")


def test_types_are_shipped() -> None:
    assert (ROOT / "scripts/iskd/py.typed").is_file()
    assert PROJECT["tool"]["setuptools"]["package-data"]["iskd"] == ["py.typed"]


def named(value: object, keys: tuple[str, ...]) -> set[str]:
    """Give the values of some keys wherever they stand in a config."""
    if isinstance(value, dict):
        own = {str(value[key]) for key in keys if isinstance(value.get(key), str)}
        return own.union(*(named(inner, keys) for inner in value.values()))
    if isinstance(value, list):
        return set[str]().union(*(named(inner, keys) for inner in value))
    return set()


def test_each_model_and_data_set_of_a_config_has_its_licence_told() -> None:
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    found = set[str]()
    for path in (ROOT / "config").glob("*.yaml"):
        found |= named(yaml.safe_load(path.read_text(encoding="utf-8")), ("dataset", "model"))
    found = {name for name in found if "/" in name}
    assert len(found) >= 7
    assert [name for name in sorted(found) if f"`{name}`" not in page] == []


def test_every_page_is_in_the_site() -> None:
    def leaves(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        assert isinstance(entry, dict | list)
        inner = entry.values() if isinstance(entry, dict) else entry
        return [leaf for value in inner for leaf in leaves(value)]

    assert sorted(leaves(site()["nav"])) == sorted(pages())
    assert site()["strict"] is True


@pytest.mark.parametrize("page", pages())
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    own = {target for target in targets if "://" not in target}
    assert len(linked(page)) == len({(ROOT / page).parent.joinpath(t).resolve() for t in own})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_there_is(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            words = step.get("run", "").split()
            if words[:1] == ["make"]:
                assert f"\n{words[1]}:" in makefile
            for word in words:
                assert not word.startswith("tools/") or (ROOT / word).is_file()


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "docs.yml"]
