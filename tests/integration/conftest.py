"""Finished studies that several files of this folder look at."""

import pytest

from tests.workflow.conftest import Clone, MakeOnce, made_once

__all__ = ["made_once"]

ARMS = ("--configfile", "tests/config/arms.yaml", "-c", "2")


@pytest.fixture(scope="session")
def all_arms(made_once: MakeOnce) -> Clone:
    """The study with one arm of each kind, finished."""

    def run(clone: Clone) -> None:
        done = clone.snakemake(*ARMS)
        assert done.returncode == 0, done.stderr[-4000:]

    return made_once("all_arms", run)
