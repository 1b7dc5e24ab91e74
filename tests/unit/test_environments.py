"""The files under envs/ agree with each other, and with what is installed."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ENVS = Path(__file__).parents[2] / "envs"


def pins(lines: list[str]) -> dict[str, str]:
    """Give version by package from lines ``name==version``."""
    requirements = [Requirement(line) for line in lines]
    assert all([s.operator for s in one.specifier] == ["=="] for one in requirements)
    return {_plain(one.name): str(one.specifier).removeprefix("==") for one in requirements}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(file: str) -> list[str]:
    text = (ENVS / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


LOCK = pins(_lines("requirements.lock"))


@pytest.mark.parametrize("line", _lines("requirements.in"))
def test_the_lock_has_what_is_required(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(LOCK[_plain(requirement.name)])


def test_the_conda_environment_installs_the_lock() -> None:
    found = yaml.safe_load((ENVS / "iskd.yaml").read_text(encoding="utf-8"))
    *others, pip = found["dependencies"]
    assert others == ["python=3.11", "pip"]
    assert pins(pip["pip"]) == LOCK


def test_what_is_installed_is_the_lock() -> None:
    installed = {
        name: version.split("+")[0]  # the build, of torch
        for name, version in (
            (_plain(one.metadata["Name"]), one.version) for one in metadata.distributions()
        )
    }
    assert {name: installed.get(name) for name in LOCK} == LOCK


def test_nothing_that_is_installed_lacks_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_package_asks_for_nothing_that_is_not_locked() -> None:
    requirements = [Requirement(line) for line in metadata.requires("iskd") or []]
    assert requirements
    assert {_plain(one.name) for one in requirements} <= set(LOCK)


def test_the_container_copies_what_is_there_and_installs_as_make_does() -> None:
    text = (ENVS / "Containerfile").read_text(encoding="utf-8")
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (ENVS.parent / source).exists()
    make = (ENVS.parent / "Makefile").read_text(encoding="utf-8")
    options = "--no-deps --no-build-isolation --editable ."
    assert options in text
    assert options in make
    assert "-r envs/requirements.lock" in text
    assert "-r envs/requirements.lock" in make
