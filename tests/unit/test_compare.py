"""How far two files are apart that should be the same."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from iskd.audit.compare import compare_files


def files(folder: Path, name: str, *contents: Any) -> list[Path]:
    paths = [folder / part / name for part in ("one", "other")]
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir()
        if isinstance(content, dict) and name.endswith("safetensors"):
            save_file(content, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


def test_weights_are_apart_by_the_norm_of_their_difference(tmp_path: Path) -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2)}
    other = {"a": torch.tensor([3.0, 4.5]), "b": torch.ones(2)}
    found = compare_files(*files(tmp_path, "m.safetensors", one, other))
    assert (found.where, found.relative) == ("a", pytest.approx(0.1))


def test_numbers_are_apart_by_the_larger(tmp_path: Path) -> None:
    found = compare_files(
        *files(
            tmp_path, "r.json", {"x": [1, {"y": 2.0}], "z": "w"}, {"x": [1, {"y": 2.5}], "z": "w"}
        )
    )
    assert (found.where, found.relative) == (".x[1].y", pytest.approx(0.2))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("r.json", {"x": "a"}, {"x": "b"}),
        ("r.json", {"x": 1}, {"y": 1}),
        ("r.json", {"x": None}, {"x": 1}),
        ("r.json", "not json", "{}"),
        ("t.csv", "a,b\n1,2\n", "a,b\n1,2\n3,4\n"),
        ("f.png", "one", "two"),
        ("m.safetensors", {"a": torch.ones(2)}, {"b": torch.ones(2)}),
        ("m.safetensors", {"a": torch.ones(2)}, {"a": torch.ones(1, 2)}),
        ("m.safetensors", {"a": torch.ones(2)}, "cut off"),
        ("m.safetensors", {"a": torch.zeros(2)}, {"a": torch.ones(2)}),
        ("m.safetensors", {"a": torch.ones(2)}, {"a": torch.tensor([1.0, math.nan])}),
    ],
)
def test_what_differs_in_more_than_numbers_is_infinitely_far(
    name: str, one: Any, other: Any, tmp_path: Path
) -> None:
    found = compare_files(*files(tmp_path, name, one, other))
    assert math.isinf(found.relative)
    assert found.as_dict()["relative"] is None


def test_a_table_is_compared_number_by_number(tmp_path: Path) -> None:
    found = compare_files(*files(tmp_path, "t.csv", "a,b\nx,2\n", "a,b\nx,2.2\n"))
    assert found.relative == pytest.approx(0.2 / 2.2)
