"""What a config leaves out about a given model is read from the model, once, and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.config import complete, load_study
from iskd.config.model_defaults import fill_in, fill_in_from, middle_out
from iskd.config.schema import FolderTeacher, HubTeacher
from iskd.data import hub
from iskd.errors import UserError

COMMIT = "0123456789" * 4


def no_lock(study: str) -> Path:
    return Path(study, "lock")


LLAMA = {"model_type": "llama", "num_hidden_layers": 10}


def config(**teacher: Any) -> dict[str, Any]:
    return {
        "study": "mine",
        "data_folder": "data",
        "corpus": {"source": "toyworld"},
        "teachers": {"model": teacher},
        "arms": {"smaller": {"method": "iskd", "recipe": "best"}},
        "tasks": {"cbt_context": {"source": "toyworld"}},
    }


def folder(**more: Any) -> dict[str, Any]:
    return config(source="folder", folder="my-model", **more)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model of ten blocks."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data" / "my-model"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(LLAMA))
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "optimizer.pt"):
        (place / name).touch()
    return place


@given(st.integers(1, 200))
def test_the_ends_of_a_model_go_last(blocks: int) -> None:
    order = middle_out(blocks)
    assert sorted(order) == list(range(blocks))
    assert {*order[-2:]} == {0, blocks - 1}


@pytest.mark.parametrize(
    ("compact", "steps"),
    [
        ({"reduction": 0.3}, 5),
        ({"reduction": "3e-1"}, 5),
        ({"reduction": 0.31}, 6),
        ({"reduction": 0.9}, 10),
        ({}, 10),
    ],
)
def test_a_folder_gives_all_defaults(here: Path, compact: dict[str, float], steps: int) -> None:
    found = complete(folder(compact=compact), "f", no_lock, ask=False)
    teacher = load_study(found, "f").teachers["model"]
    assert isinstance(teacher, FolderTeacher)
    assert (teacher.family, teacher.blocks, teacher.steps) == ("llama", 10, steps)
    assert teacher.order == middle_out(10)
    assert "optimizer.pt" not in teacher.files
    assert len(teacher.files) == 4
    assert here.is_dir()


@pytest.mark.parametrize(
    ("order", "steps"), [("measured", 5), ("random", 5), ([1, 2], None), (None, 5)]
)
def test_an_order_that_is_no_list_leaves_the_number_of_steps_to_the_reduction(
    here: Path, order: object, steps: int | None
) -> None:
    given = {} if order is None else {"order": order}
    found = complete(folder(compact={"reduction": 0.3}, **given), "f", no_lock, ask=False)
    assert found["teachers"]["model"].get("steps") == steps


def test_what_is_given_stays() -> None:
    section = folder(family="gpt2", blocks=4, order=[3, 1], files=["config.json"])
    assert complete(section, "f", no_lock, ask=False) == section


def test_what_is_given_is_not_looked_up(here: Path) -> None:
    (here / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = complete(folder(blocks=4), "f", no_lock, ask=False)
    assert found["teachers"]["model"]["family"] == "llama"


def test_half_of_the_blocks_are_replaced_as_in_the_paper() -> None:
    for kind, blocks, half in (("gpt2", 12, 6), ("phi", 24, 12)):
        found = fill_in(
            folder(compact={"reduction": 0.3}),
            "f",
            lambda *_, kind=kind, blocks=blocks: {"model_type": kind, "n_layer": blocks},
        )
        assert found["teachers"]["model"]["steps"] == half


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bloom", "n_layer": 3}, "f: teachers.model: the model's architecture"),
        ({"model_type": "llama"}, "f: teachers.model: the model's config.json does not tell"),
        ([], "config.json: no JSON object; save the model anew"),
        ("{", "config.json: no JSON; save the model anew"),
        (None, "config.json is not there; put a model there"),
    ],
)
def test_models_that_will_not_do(here: Path, config: Any, message: str) -> None:
    file = here / "config.json"
    if config is None:
        file.unlink()
    else:
        file.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError) as caught:
        complete(folder(), "f", no_lock, ask=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(here: Path) -> None:
    (here / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        complete(folder(), "f", no_lock, ask=False)


@pytest.mark.parametrize("study", ["../up", 10**400, None, ["x"]], ids=range(4))
def test_a_wrong_study_asks_nobody(study: Any) -> None:
    raw = config(source="hub", model="a/b", revision=COMMIT) | {"study": study}
    with pytest.raises(UserError, match="f: study: "):
        load_study(complete(raw, "f", no_lock, ask=True), "f")


@pytest.mark.parametrize("name", ["../my-model", "/etc", 3, None, ""])
def test_a_wrong_name_is_left_to_the_schema(here: Path, name: Any) -> None:
    raw = complete(config(source="folder", folder=name), "f", no_lock, ask=False)
    with pytest.raises(UserError, match=r"f: teachers\.model\.folder: "):
        load_study(raw, "f")
    assert here.is_dir()


def test_the_hub_is_queried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, fetched = tmp_path / "hub.lock.json", []

    def fetch(repo: str, commit: str) -> dict[str, Any]:
        fetched.append((repo, commit))
        return {**LLAMA, "hidden_size": 3}

    monkeypatch.setattr(hub, "_read_config", fetch)
    raw = config(source="hub", model="a/b", revision=COMMIT)
    with pytest.raises(UserError, match="left out and not known; add them"):
        complete(raw, "f", lambda _: lock, ask=False)
    first = complete(raw, "f", lambda _: lock, ask=True)
    assert complete(raw, "f", lambda _: lock, ask=False) == first
    assert fetched == [("a/b", COMMIT)]
    teacher = load_study(first, "f").teachers["model"]
    assert isinstance(teacher, HubTeacher)
    assert (teacher.family, teacher.blocks) == ("llama", 10)


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "get_session", session)
    raw = config(source="hub", model="a/b", revision=COMMIT)
    with pytest.raises(UserError, match=r"family and blocks are left out.*no route to host"):
        complete(raw, "f", lambda _: tmp_path / "lock", ask=True)


def test_an_auditor_takes_what_was_recorded(here: Path) -> None:
    raw = folder(compact={"reduction": 0.3})
    recorded = load_study(complete(raw, "f", no_lock, ask=False), "f").model_dump(mode="json")
    filled = load_study(fill_in_from(raw, recorded), "f")
    assert filled.model_dump(mode="json") == recorded
    # Another kind of model under the same name is not what was recorded.
    other = config(source="hub", model="a/b")
    assert fill_in_from(other, recorded) == other
    assert here.is_dir()
