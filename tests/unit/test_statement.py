"""Statements: one text each, read strictly, and no name that leads out of the artifact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from iskd.provenance.statement import (
    Produced,
    Statement,
    StatementError,
    artifact_digest,
    canonical_json,
    parse_statement,
    write_statement,
)
from iskd.provenance.tensors import TensorsError, count_parameters, tensor_shapes, tensors_digest

from .synthetic import make_request

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}(\.json)?", fullmatch=True)
FILES = st.builds(Produced, DIGESTS, st.integers(0, 2**40), st.none() | DIGESTS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
INPUTS = st.dictionaries(
    NAMES, st.fixed_dictionaries({"sha256": DIGESTS}, optional={"artifact": DIGESTS}), max_size=4
)
STATEMENTS = st.builds(
    lambda parameters, seed, inputs, files, summary: Statement(
        make_request(parameters=parameters, seed=seed, inputs=inputs), files, summary
    ),
    st.dictionaries(st.text(), VALUES, max_size=3),
    st.none() | st.integers(0, 2**63),
    INPUTS,
    st.dictionaries(NAMES, FILES, max_size=4),
    st.dictionaries(st.text(), VALUES, max_size=3),
)
PLAIN = Statement(
    make_request(inputs={"results/s/a/manifest.json": {"sha256": "1" * 64, "artifact": "2" * 64}}),
    {"a.txt": Produced("3" * 64, 5), "b.safetensors": Produced("4" * 64, 7, "5" * 64)},
    {"loss": 1.5},
)


@given(STATEMENTS)
def test_what_is_written_is_read(statement: Statement) -> None:
    text = write_statement(statement)
    read = parse_statement(text.encode())
    assert read == statement
    assert write_statement(read) == text


def test_the_form_is_the_one_that_others_read() -> None:
    data = json.loads(write_statement(PLAIN))
    assert data["_type"] == "https://in-toto.io/Statement/v1"
    assert data["predicateType"] == "https://slsa.dev/provenance/v1"
    assert data["subject"][0] == {
        "name": "a.txt",
        "digest": {"sha256": "3" * 64},
        "annotations": {"bytes": 5},
    }
    build = data["predicate"]["buildDefinition"]
    assert build["externalParameters"]["seed"] == 1
    assert [entry["name"] for entry in build["resolvedDependencies"]] == [
        "results/s/a/manifest.json",
        "code",
        "envs/requirements.lock",
    ]
    assert data["predicate"]["runDetails"]["builder"]["id"]


def spoiled(change: Any) -> str:
    data = json.loads(write_statement(PLAIN))
    change(data)
    return canonical_json(data)


def rename(name: Any) -> Any:
    def change(data: Any) -> None:
        data["subject"][0]["name"] = name

    return change


@pytest.mark.parametrize(
    "name",
    ["../a.txt", "/a.txt", "a/../../b", "./a", "a//b", "a\\b", "", "a\nb", "..", 3, None, "a/"],
)
def test_names_that_lead_elsewhere_are_refused(name: Any) -> None:
    with pytest.raises(StatementError, match="names the file"):
        parse_statement(spoiled(rename(name)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"_type": NaN}',
        write_statement(PLAIN).rstrip("\n"),
        write_statement(PLAIN).replace("  ", " "),
        write_statement(PLAIN).replace('"seed": 1', '"seed": 1, "seed": 2'),
        spoiled(lambda data: data.update(note="x")),
        spoiled(lambda data: data["subject"].append(data["subject"][0])),
        spoiled(lambda data: data["subject"][0]["digest"].update(sha256="xyz")),
        spoiled(lambda data: data["subject"][0]["annotations"].update(bytes=-1)),
        spoiled(lambda data: data["subject"][0]["annotations"].update(bytes=True)),
        spoiled(lambda data: data["predicate"]["buildDefinition"].update(buildType="other")),
        spoiled(lambda data: data["predicate"]["runDetails"].pop("byproducts")),
        "[" * 200_000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(StatementError):
        parse_statement(text)


@given(st.dictionaries(NAMES, FILES, max_size=5), st.randoms())
def test_an_artifacts_digest_is_of_its_files_in_no_order(
    files: dict[str, Produced], draw: Any
) -> None:
    shuffled = list(files.items())
    draw.shuffle(shuffled)
    assert artifact_digest(dict(shuffled)) == artifact_digest(files)
    for name, file in files.items():
        changed = files | {name: Produced(file.sha256[::-1] + "", file.size + 1, file.tensors)}
        assert artifact_digest(changed) != artifact_digest(files)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    torch.manual_seed(1)
    save_file({"b": torch.randn(3, 4), "a": torch.arange(5), "c": torch.tensor(1.0)}, path)
    return path


def test_tensors_have_one_digest_however_they_are_written(weights: Path) -> None:
    before = tensors_digest(weights)
    assert tensor_shapes(weights) == {"a": (5,), "b": (3, 4), "c": ()}
    assert count_parameters(weights) == 18
    tensors = load_file(weights)
    save_file(dict(reversed(tensors.items())), weights, metadata={"by": "another"})
    assert tensors_digest(weights) == before
    tensors["b"][0, 0] += 1e-7
    save_file(tensors, weights)
    assert tensors_digest(weights) != before


@pytest.mark.parametrize("shape", [(4, 3), (12,)])
def test_another_shape_is_another_digest(shape: tuple[int, ...], weights: Path) -> None:
    before = tensors_digest(weights)
    tensors = load_file(weights)
    save_file(tensors | {"b": tensors["b"].reshape(shape)}, weights)
    assert tensors_digest(weights) != before


@given(cut=st.integers(0, 200), flipped=st.integers(0, 60), data=st.binary(min_size=1, max_size=1))
def test_a_damaged_file_is_an_error_or_another_digest(cut: int, flipped: int, data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file({"a": torch.arange(20.0), "b": torch.ones(2, 2)}, path)
        before, whole = tensors_digest(path), path.read_bytes()
        damaged = whole[: len(whole) - cut]
        damaged = damaged[:flipped] + data + damaged[flipped + 1 :]
        path.write_bytes(damaged)
        try:
            after = tensors_digest(path)
        except TensorsError:
            return
        assert after != before or load_file(path).keys() == {"a", "b"}


def test_what_is_no_safetensors_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for data in (b"", b"\x00" * 8, b"\xff" * 16, (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(data)
        with pytest.raises(TensorsError, match=r"a\.safetensors is no safetensors file"):
            tensors_digest(path)
