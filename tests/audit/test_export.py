"""What an export says: a crate that a validator accepts, a checklist, and code; all verified."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from rocrate.rocrate import ROCrate
from rocrate_validator import services
from urllib3 import HTTPResponse

from iskd.audit.crate import TERMS
from iskd.audit.export import export
from iskd.audit.findings import Code
from iskd.audit.folder import CHECKLIST, CODE, CONFIG, CRATE, StudyFolder, recorded_config
from iskd.cli import main
from iskd.errors import UserError
from iskd.provenance.artifact import RUN, file_digest
from iskd.provenance.environment import tree_digest
from iskd.provenance.statement import canonical_json
from tests.workflow.conftest import ROOT, Clone

from .tampering import RESULTS, Results, flip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("planned_once")]

LICENCE = "https://creativecommons.org/licenses/by/4.0/"
STEP = "substitute_block/toy/iskd/seed_3/step_02"
CRATE_TERMS = "https://w3id.org/ro/crate/1.1/context"
VOCABULARY = Path(__file__).parent / "crate_terms.yaml"


@pytest.fixture
def exported(results: Results) -> Results:
    export(results.folder, LICENCE)
    return results


class Stored(HTTPAdapter):
    """What the validator asks the web for, from memory."""

    def __init__(self, documents: dict[str, Any]) -> None:
        super().__init__()
        self.documents = documents

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **how: Any
    ) -> requests.Response:
        """Answer as a server would."""
        body = io.BytesIO(json.dumps(self.documents[str(request.url)]).encode())
        form = {"Content-Type": "application/ld+json"}
        raw = HTTPResponse(body, headers=form, status=200, preload_content=False)
        return self.build_response(request, raw)


def own_contexts() -> dict[str, dict[str, str]]:
    """Give the two JSON-LD contexts, as far as a crate of ours uses them."""
    terms = yaml.safe_load(VOCABULARY.read_text(encoding="utf-8"))
    plain = {word: f"http://schema.org/{word}" for words in terms["schema.org"] for word in words}
    runs = {term: f"https://w3id.org/ro/terms/workflow-run#{term}" for term in terms["runs"]}
    return {CRATE_TERMS: plain | terms["elsewhere"], TERMS: runs}


def published_contexts() -> dict[str, dict[str, str]] | None:
    """Give the two as they were published, where they are at hand."""
    folder = Path(os.environ.get("ISKD_REAL_DATA", "none"), "jsonld")
    files = {CRATE_TERMS: "ro-crate-1.1.jsonld", TERMS: "wfrun.json"}
    if not all((folder / name).is_file() for name in files.values()):
        return None
    return {
        url: json.loads((folder / name).read_text(encoding="utf-8"))["@context"]
        for url, name in files.items()
    }


def test_our_words_mean_what_they_do_in_the_published_contexts() -> None:
    published = published_contexts()
    if published is None:
        pytest.skip("ISKD_REAL_DATA names no folder with the JSON-LD contexts")
    for url, terms in own_contexts().items():
        assert {term: published[url].get(term) for term in terms} == terms


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A cache of the contexts for the validator: the published ones where they are at hand."""
    contexts = {
        url: {"@context": terms} for url, terms in (published_contexts() or own_contexts()).items()
    }
    cache = tmp_path / "cache"
    with CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        session.mount("https://", Stored(contexts))
        for url in contexts:
            session.get(url)
    return cache


def issues(study: Path, web: Path) -> list[str]:
    """Validate a crate against the profile, without a network."""
    settings = services.ValidationSettings(
        rocrate_uri=study,
        profile_identifier="provenance-run-crate",
        requirement_severity="REQUIRED",
        offline=True,
        cache_path=web,
    )
    return [str(issue.message) for issue in services.validate(settings).get_issues()]


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
def test_the_crate_is_valid(exported: Results, web: Path) -> None:
    assert issues(exported.folder, web) == []
    # The validator does look.
    graph = json.loads((exported / CRATE).read_text(encoding="utf-8"))
    for entity in graph["@graph"]:
        entity.pop("instrument", None)
    (exported / CRATE).write_text(canonical_json(graph), encoding="utf-8")
    assert any("instrument" in message for message in issues(exported.folder, web))


def test_the_crate_describes_every_artifact_in_place(exported: Results) -> None:
    """Read by the library, against statements and files."""
    crate = ROCrate(exported.folder)
    folder = StudyFolder(exported.folder)
    for place, found in folder.artifacts.items():
        assert found.statement is not None
        action = crate.get(f"#{place}")
        assert action["instrument"].id == f"{CODE}/scripts/{found.statement.request['rule']}.py"
        assert action["result"].id == f"{place}/"
        sources = [folder.source(name) for name in found.statement.request["inputs"]]
        named = action.get("object") or []
        named = {entity.id for entity in (named if isinstance(named, list) else [named])}
        assert {f"{source}/" for source in sources if source} <= named
        parts = {part.id: part for part in crate.get(f"{place}/")["hasPart"]}
        for name, produced in found.statement.files.items():
            about = parts[f"{place}/{name}"]
            assert (about["sha256"], about["contentSize"]) == (produced.sha256, str(produced.size))
    for entity in crate.data_entities:
        assert (exported.folder / entity.id).exists()
    # Each entity that another one names is there.
    text = (exported / CRATE).read_text(encoding="utf-8")
    graph = {entity["@id"]: entity for entity in json.loads(text)["@graph"]}
    for entity in graph.values():
        for values in entity.values():
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, dict) and not value["@id"].startswith("https://"):
                    assert value["@id"] in graph


def test_the_study_is_planned_from_the_code_alone(exported: Results) -> None:
    """The checklist says so, of a study that no commit is known of."""
    text = (exported / CHECKLIST).read_text(encoding="utf-8")
    assert "- Commands, from `code/`:" in text
    assert "  snakemake --cores all\n" in text
    planned = Clone(exported / CODE).planned("--cores", "all")
    assert planned["substitute_block"] == 2
    assert planned["evaluate"] == 10


def test_the_code_and_the_config_are_those_that_made_it(exported: Results) -> None:
    run = json.loads((exported / f"paper/{RUN}").read_text(encoding="utf-8"))
    assert tree_digest(exported / CODE) == run["code"]
    assert (exported / CONFIG).read_text(encoding="utf-8") == recorded_config(exported.folder)


def test_the_checklist_says_what_ran(exported: Results) -> None:
    text = (exported / CHECKLIST).read_text(encoding="utf-8")
    root = file_digest(exported / "collect_metrics/manifest.json")
    weights = (exported / f"{STEP}/model.safetensors").stat().st_size
    parameters = json.loads((exported / f"{STEP}/substitution.json").read_text())["parameters"]
    hours = {"training": 0.0, "evaluation": 0.0, "all else": 0.0}
    for path in exported.folder.rglob(RUN):
        run, rule = json.loads(path.read_text()), path.relative_to(exported.folder).parts[0]
        trained = rule in ("pretrain_teacher", "substitute_block", "prune_l1", "distill_student")
        evaluated = rule.startswith(("evaluate", "measure_"))
        kind = "training" if trained else "evaluation" if evaluated else "all else"
        hours[kind] += run["seconds_in_all"] * run["threads"] / 3600
    for kind, number in hours.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        assert float(row.split("|")[3]) == pytest.approx(number, abs=0.0006)
    for part in (
        f"`{root}`",
        f"| {STEP} | {parameters:,} | {weights:,} |",
        "- Seeds of the arms: 3; all of them are reported",
        "- One seed: nothing here tells how much another training would differ",
        f"Results: {LICENCE}",
        # The tests' copy of the workflow is no git checkout.
        "- No commit: 52 artifacts, made outside of a git checkout",
    ):
        assert part in text
    assert "None" not in text


def test_an_export_is_verified_and_leaves_the_study_as_it_was(exported: Results) -> None:
    assert exported.codes() == set()
    before = {p: p.read_bytes() for p in exported.folder.rglob("*") if p.is_file()}
    export(exported.folder, LICENCE)
    assert {p: p.read_bytes() for p in exported.folder.rglob("*") if p.is_file()} == before
    # It moves with the study.
    moved = exported.folder.rename(exported.folder.with_name("another-name"))
    assert Results(moved).codes() == set()


def edit_crate(results: Results) -> str:
    text = (results / CRATE).read_text(encoding="utf-8")
    (results / CRATE).write_text(text.replace(f'"{STEP}/"', '"make_toyworld/"'), encoding="utf-8")
    return CRATE


def edit_checklist(results: Results) -> str:
    text = (results / CHECKLIST).read_text(encoding="utf-8")
    (results / CHECKLIST).write_text(text.replace("One seed", "Five seeds"), encoding="utf-8")
    return CHECKLIST


def edit_code(results: Results) -> str:
    script = results / f"{CODE}/scripts/evaluate.py"
    script.write_text(script.read_text(encoding="utf-8") + "# better\n", encoding="utf-8")
    return CODE


def add_code(results: Results) -> str:
    (results / f"{CODE}/setup.py").write_text("raise SystemExit")
    return f"{CODE}/setup.py"


def edit_config(results: Results) -> str:
    (results / CONFIG).write_text("study: tiny\n")
    return CONFIG


def lose_checklist(results: Results) -> str:
    (results / CHECKLIST).unlink()
    return CHECKLIST


def cut_crate(results: Results) -> str:
    (results / CRATE).write_text('{"@graph": [')
    return CRATE


def lose_script(results: Results) -> str:
    (results / f"{CODE}/scripts/evaluate.py").unlink()
    return CODE


@pytest.mark.parametrize(
    "harm",
    [
        *(edit_crate, edit_checklist, edit_code, add_code, edit_config),
        *(lose_checklist, cut_crate, lose_script),
    ],
)
def test_an_export_that_was_tampered_with(
    harm: Callable[[Results], str], exported: Results
) -> None:
    place = harm(exported)
    assert (place, Code.EXPORT) in exported.codes()


def test_an_export_of_another_state_of_the_study(exported: Results) -> None:
    """Reports of runs are in no statement, and in the crate by their digest."""
    run = json.loads((exported / f"{STEP}/{RUN}").read_text(encoding="utf-8"))
    (exported / f"{STEP}/{RUN}").write_text(canonical_json(run | {"seconds": 1.0}))
    assert {code for _, code in exported.codes()} == {Code.EXPORT}


def test_without_its_crate_an_export_is_a_leftover(exported: Results) -> None:
    (exported / CRATE).unlink()
    codes = exported.codes()
    assert (CHECKLIST, Code.ORPHAN) in codes
    assert (f"{CODE}/scripts/evaluate.py", Code.ORPHAN) in codes
    # As one that was killed leaves it: the same call again mends that.
    assert main(["export", str(exported.folder), "--licence", LICENCE]) == 0
    assert exported.codes() == set()


def test_nothing_is_exported_in_which_something_is_found(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(results.folder), "--licence", LICENCE]
    assert main(command) == 0
    flip(results / f"{STEP}/model.safetensors")
    assert main(command) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was exported"
    assert not list(results.folder.glob(".*"))


def test_code_that_is_not_here_cannot_be_exported(results: Results) -> None:
    run = json.loads((results / f"paper/{RUN}").read_text(encoding="utf-8"))
    (results / f"paper/{RUN}").write_text(canonical_json(run | {"code": "1" * 64}))
    with pytest.raises(UserError, match="its code cannot be exported: "):
        export(results.folder, LICENCE)
    assert not (results / CODE).exists()


def test_exported_code_plans_the_same_study(exported: Results, finished: Clone) -> None:
    """What was exported is enough to make the study again."""
    clone = Clone(exported / CODE)
    planned = clone.planned("-c", "1")
    assert sum(planned.values()) == len(StudyFolder(finished.folder / RESULTS).artifacts)
    assert (ROOT / "workflow/Snakefile").read_bytes() == (
        exported / f"{CODE}/workflow/Snakefile"
    ).read_bytes()
