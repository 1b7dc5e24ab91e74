"""Licence and origin of a given model, read from its card, config or GGUF file."""

from pathlib import Path
from typing import Any

import gguf
import pytest

from iskd.config.given import complete
from iskd.config.load import load_study
from iskd.config.schema import FolderTeacher
from iskd.data.model_origin import origin_of
from tests.unit.test_model_defaults import folder, here, no_lock

__all__ = ["here"]

BOTH = {"licence": "apache-2.0", "base_model": "org/base"}


@pytest.mark.parametrize(
    ("card", "config", "found"),
    [
        ("---\nlicense: apache-2.0\nbase_model: org/base\n---\n# It\n", {}, BOTH),
        ("---\nlicense: apache-2.0\nbase_model:\n- org/base\n---\n", {}, BOTH),
        ("---\nbase_model: [a/b, c/d]\n---\n", {}, {}),
        ("---\nlicense: mit\n---\n", {"_name_or_path": "org/own"}, {"licence": "mit"}),
        ("no front matter\n---\nlicense: mit\n---\n", {"_name_or_path": "/some/folder"}, {}),
        ("---\nlicense: [\n---\n", {}, {}),
        ("---\nlicense: no such thing\n---\n", {}, {}),
        (None, {}, {}),
    ],
)
def test_the_card_and_the_config_tell(
    card: str | None, config: dict[str, Any], found: dict[str, str], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    if config.get("_name_or_path") == "org/own":
        found = {**found, "base_model": "org/own"}
    assert origin_of(tmp_path, config, None) == found


def test_a_gguf_file_tells(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://huggingface.co/org/base")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert origin_of(tmp_path, {}, "a.gguf") == BOTH
    assert origin_of(tmp_path, {}, "none.gguf") == {}


def test_the_study_takes_it_over_unless_it_says_itself(here: Path) -> None:
    (here / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n")
    for given, wanted in (({}, BOTH), ({"licence": "mit"}, {**BOTH, "licence": "mit"})):
        found = complete(folder(**given), "f", no_lock, ask=False)
        teacher = load_study(found, "f").teachers["model"]
        assert isinstance(teacher, FolderTeacher)
        assert {"licence": teacher.licence, "base_model": teacher.base_model} == wanted
