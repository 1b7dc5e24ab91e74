"""Where transformers' own tests lie."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

import tests

SETTING = "ISKD_TRANSFORMERS_TESTS"


def library_tests() -> ModuleType:
    """Import ``causal_lm_tester`` from the folder that the environment names; skip without one.

    Its modules import each other as parts of a package ``tests``, which is our own here: the
    folder is put behind ours, so that each finds its own.
    """
    named = os.environ.get(SETTING)
    if not named:
        pytest.skip(f"{SETTING} names no folder tests of transformers", allow_module_level=True)
    folder = Path(named).resolve()
    if not (folder / "causal_lm_tester.py").is_file():
        pytest.exit(f"{SETTING}: {folder} has no causal_lm_tester.py; name <transformers>/tests", 2)
    pytest.importorskip("parameterized", reason="parameterized is not installed")
    if str(folder) not in tests.__path__:
        tests.__path__.append(str(folder))
    return importlib.import_module("tests.causal_lm_tester")
