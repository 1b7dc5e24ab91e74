"""The context manager around every script: what it publishes, and how it fails."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, read_manifest
from iskd.provenance.environment import LOCK
from iskd.runtime.job import run_rule
from iskd.runtime.signals import EXIT_AGAIN, Interrupted


class Named(list[Any]):
    """Stand for Snakemake's list with names."""

    def __init__(self, **named: Any) -> None:
        super().__init__(
            item for v in named.values() for item in (v if isinstance(v, list) else [v])
        )
        self.named = named

    def items(self) -> Any:
        return self.named.items()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.named[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder; give the log and the environment back afterwards."""
    monkeypatch.chdir(tmp_path)
    environment, root = dict(os.environ), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    os.environ.clear()
    os.environ.update(environment)


def rule(
    output: dict[str, Any] | None = None,
    *,
    inputs: dict[str, Any] | None = None,
    log: str | None = "results/logs/make.log",
    **params: Any,
) -> Any:
    given = {"code": "c0de", "seed": 3, "spec": {"size": 1}} | params
    return SimpleNamespace(
        rule="make",
        threads=1,
        log=[log] if log else [],
        params=Named(**given),
        input=Named(**(inputs or {})),
        output=Named(
            **(output or {"a": "results/make/a.txt"}), manifest="results/make/manifest.json"
        ),
        wildcards=Named(teacher="toy"),
        resources={},
    )


def work(snakemake: Any, content: str = "text") -> None:
    with run_rule(snakemake) as job:
        (job.out / "a.txt").write_text(content)
        job.summary["lines"] = 1
        job.log.info("half way")


def fail(error: BaseException, snakemake: Any = None) -> None:
    with run_rule(snakemake or rule()) as job:
        (job.out / "a.txt").write_text("half")
        raise error


FOLDER = Path("results/make")


def test_a_job_publishes_what_its_script_wrote() -> None:
    work(rule())
    manifest = read_manifest(FOLDER)
    assert manifest.request == {
        "rule": "make",
        "wildcards": {"teacher": "toy"},
        "parameters": {"spec": {"size": 1}},
        "seed": 3,
        "inputs": {},
        "code": "c0de",
        "lock": file_digest(LOCK),
    }
    assert manifest.summary == {"lines": 1}
    assert list(manifest.files) == ["a.txt"]
    run = json.loads((FOLDER / RUN).read_text())
    assert run["threads"] == 1
    assert run["seconds"] >= 0
    assert str(Path.cwd()) not in (FOLDER / RUN).read_text()
    log = Path("results/logs/make.log").read_text()
    assert "half way" in log
    assert "published results/make" in log
    assert sorted(os.listdir("results")) == ["logs", "make"]  # noqa: PTH208


def test_neither_a_modules_prefix_nor_its_name_for_the_rule_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "scripts"
    made.mkdir()
    (made / "make.py").touch()
    monkeypatch.setattr("iskd.runtime.request.SCRIPTS", made)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(made / "make.py"), raising=False)
    top = Path("results/results")  # any name will do
    (top / "results/s/read").mkdir(parents=True)
    (top / "results/s/read/rows.jsonl").write_text("row")
    Path("local.txt").write_text("text")
    call = rule(
        {"a": f"{top}/results/s/make/a.txt"},
        inputs={"rows": f"{top}/results/s/read/rows.jsonl", "local": "local.txt"},
    )
    call.rule = "iskd_make"
    call.output.named["manifest"] = f"{top}/results/s/make/manifest.json"
    call.output[:] = call.output.named.values()
    with run_rule(call) as job:
        assert job.top == top
        (job.out / "a.txt").touch()
    request = read_manifest(top / "results/s/make").request
    assert request["rule"] == "make"
    assert set(request["inputs"]) == {"results/s/read/rows.jsonl", "local.txt"}


def test_another_library_than_the_one_beside_the_script_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts/iskd").mkdir(parents=True)
    script = str(tmp_path / "scripts/make.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    with pytest.raises(SystemExit, match=r"imported from .*scripts and not from beside"):
        work(rule())
    assert not FOLDER.exists()


def test_what_the_script_sees() -> None:
    work(rule())
    FOLDER.rename("in")
    with run_rule(rule(inputs={"teacher": "in/manifest.json"})) as job:
        assert job.folder("teacher") == Path("in")
        assert (job.rule, job.seed, job.threads) == ("make", 3, 1)
        assert job.params["spec"] == {"size": 1}
        assert job.wildcards == {"teacher": "toy"}
        assert job.out.parent == Path("results")
        assert list(job.out.iterdir()) == []
        (job.out / "a.txt").touch()


def test_a_manifest_that_is_none_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Path("in/manifest.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^make: in/manifest.json lacks .*; delete in and call"):
        work(rule(inputs={"teacher": "in/manifest.json"}))
    assert not FOLDER.exists()


@pytest.mark.parametrize("network", [True, False])
def test_only_a_download_may_open_a_connection(network: bool) -> None:
    with run_rule(rule(), network=network) as job:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            assert os.environ[name] == ("0" if network else "1")
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            assert os.environ[name] == "1"
        (job.out / "a.txt").touch()


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(UserError("corpus: too\nshort"))
    assert caught.value.code == "make: corpus: too short"  # Python prints it and exits with 1
    assert capsys.readouterr().err == ""
    log = Path("results/logs/make.log").read_text()
    assert log.count("\n") == 1
    assert "make: corpus: too short" in log
    assert not FOLDER.exists()
    assert os.listdir("results") == ["logs"]  # noqa: PTH208


def test_a_users_mistake_in_its_own_process_ends_with_1() -> None:
    import subprocess

    program = (
        "import sys; from types import SimpleNamespace as S\n"
        "from iskd.runtime.job import run_rule; from iskd.errors import UserError\n"
        "class N(dict):\n"
        "    manifest = 'made/manifest.json'\n"
        "    def __iter__(self): return iter(['made/manifest.json'])\n"
        "s = S(rule='make', threads=1, log=['log.txt'], params=N(code='c'), input=N(),\n"
        "      output=N(), wildcards=N(), resources={})\n"
        "with run_rule(s) as job:\n"
        "    raise UserError('no such thing')\n"
    )
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(scripts)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "make: no such thing\n")


def test_any_other_failure_leaves_its_traceback_in_the_log() -> None:
    with pytest.raises(SystemExit) as caught, run_rule(rule()):
        raise ZeroDivisionError("by nought")
    assert "ZeroDivisionError: by nought" in str(caught.value.code)
    assert "results/logs/make.log" in str(caught.value.code)
    assert "\n" not in str(caught.value.code)
    log = Path("results/logs/make.log").read_text()
    assert "Traceback" in log
    assert "test_job.py" in log
    assert not FOLDER.exists()


def test_an_interrupt_publishes_nothing() -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert os.listdir("results") == ["logs"]  # noqa: PTH208


def test_a_failure_leaves_the_old_artifact_in_place() -> None:
    work(rule())
    before = (FOLDER / MANIFEST).read_bytes()
    with pytest.raises(SystemExit):
        fail(UserError("no"))
    assert (FOLDER / MANIFEST).read_bytes() == before
    assert (FOLDER / "a.txt").read_text() == "text"


def test_a_missing_output_is_refused() -> None:
    output = {"files": ["results/make/a.txt", "results/make/b.txt"], "c": "elsewhere/c.csv"}
    with pytest.raises(SystemExit) as caught:
        work(rule(output))
    assert "did not write b.txt, c.csv" in str(caught.value.code)
    assert not FOLDER.exists()


def test_an_output_outside_of_the_folder_gets_its_copy() -> None:
    with run_rule(rule({"table": "results/deep/metrics.csv"})) as job:
        (job.out / "metrics.csv").write_text("a,b\nZoë,1\n", encoding="utf-8")
    assert (FOLDER / "metrics.csv").read_bytes() == Path("results/deep/metrics.csv").read_bytes()
    assert os.listdir("results/deep") == ["metrics.csv"]  # noqa: PTH208


def test_what_a_job_that_ran_on_has_published_is_not_made_again() -> None:
    """Its Snakemake was killed, the next one's job comes when it has just ended."""
    call = rule({"a": "results/make/a.txt", "copy": "results/a.txt"})
    work(call)
    before = (FOLDER / RUN).read_bytes()
    Path("results/a.txt").unlink()
    with pytest.raises(SystemExit) as ended:
        work(call, "never written")
    assert ended.value.code == 0
    assert (FOLDER / RUN).read_bytes() == before
    assert Path("results/a.txt").read_text() == "text"
    assert "published by a job that ran on" in Path("results/logs/make.log").read_text()


@pytest.mark.parametrize("damage", ["a.txt", MANIFEST, "other parameters"])
def test_what_is_not_just_this_artifact_whole_is_made_again(damage: str) -> None:
    work(rule())
    if damage == "other parameters":
        work(rule(spec={"size": 2}), "new")
    else:
        (FOLDER / damage).write_text("{}")
        work(rule(), "new")
    assert (FOLDER / "a.txt").read_text() == "new"


def test_a_further_attempt_at_what_failed_by_its_own_fault_is_not_made() -> None:
    call = rule()
    call.resources = {"attempt": 1}
    with pytest.raises(SystemExit, match="too short"):
        fail(UserError("corpus: too short"), call)
    call.resources = {"attempt": 2}
    with pytest.raises(SystemExit, match=r"too short \(attempt 2 is not made"):
        work(call)
    assert not FOLDER.exists()


def test_the_manifest_does_not_depend_on_time_or_place() -> None:
    found = []
    for place in ("one", "two/deep"):
        Path(place).mkdir(parents=True)
        os.chdir(place)
        work(rule())
        found.append((FOLDER / MANIFEST).read_bytes())
        os.chdir("../.." if "/" in place else "..")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("parameters", {"params": {"spec": {"size": 2}}}),
        ("seed", {"params": {"seed": 4}}),
        ("code", {"params": {"code": "beef"}}),
        ("inputs", {"input": "other"}),
        ("files", {"content": "other"}),
    ],
)
def test_the_manifest_shows_what_is_different(part: str, change: dict[str, Any]) -> None:
    Path("raw.jsonl").write_text("raw")
    inputs = {"texts": "raw.jsonl"}
    work(rule(inputs=inputs))
    before = read_manifest(FOLDER)
    shutil.rmtree(FOLDER)  # as Snakemake does before it starts a job
    Path("raw.jsonl").write_text(change.get("input", "raw"))
    work(rule(inputs=inputs, **change.get("params", {})), change.get("content", "text"))
    after = read_manifest(FOLDER)
    flat = [{**m.request, "files": m.files} for m in (before, after)]
    assert [key for key in flat[0] if flat[0][key] != flat[1][key]] == [part]


def test_inputs_are_named_by_manifest_or_by_raw_file() -> None:
    work(rule())
    made = FOLDER.rename("made")
    Path("raw").mkdir()
    Path("raw/a.jsonl").write_text("raw")
    inputs = {
        "teacher": "made/manifest.json",
        "weights": "made/a.txt",
        "texts": ["raw/a.jsonl"],
    }
    work(rule(inputs=inputs))
    digests = read_manifest(FOLDER).request["inputs"]
    assert digests == {
        "made/manifest.json": {
            "sha256": file_digest(made / MANIFEST),
            "artifact": read_manifest(made).artifact,
        },
        "raw/a.jsonl": {"sha256": file_digest(Path("raw/a.jsonl"))},
    }


def test_files_outside_of_the_working_folder_are_named_without_their_place(
    tmp_path: Path,
) -> None:
    names = [tmp_path / "data" / part / "x.jsonl" for part in ("one", "two", "three")]
    for path in names:
        path.parent.mkdir(parents=True)
        path.write_text(path.parent.name)
    work(rule(inputs={"texts": [str(path) for path in names]}))
    digests = read_manifest(FOLDER).request["inputs"]
    # Three files of one name: none may hide another.
    assert list(digests.values()) == [{"sha256": file_digest(path)} for path in names]
    assert set(digests) == {"x.jsonl", "x.jsonl #2", "x.jsonl #3"}
    assert str(tmp_path) not in (FOLDER / MANIFEST).read_text()


def test_a_missing_input_fails_before_the_script_runs() -> None:
    with pytest.raises(SystemExit), run_rule(rule(inputs={"texts": "gone.jsonl"})):
        pytest.fail("the body ran")  # pragma: no cover


def test_a_rule_without_a_seed_has_none_in_its_manifest() -> None:
    snakemake = rule()
    del snakemake.params.named["seed"]
    work(snakemake)
    assert read_manifest(FOLDER).request["seed"] is None


def test_a_parameter_that_json_lacks_is_a_failure_not_a_half_artifact() -> None:
    with pytest.raises(SystemExit):
        work(rule(spec={"size": float("nan")}))
    assert not FOLDER.exists()


def test_without_a_log_file_the_log_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    work(rule(log=None))
    assert "half way" in capsys.readouterr().err


def test_a_job_that_was_asked_to_stop_publishes_nothing_and_asks_for_another_call() -> None:
    def stopped() -> None:
        with run_rule(rule()) as job:
            (job.out / "a.txt").write_text("half")
            (job.work.path / "a state").mkdir()
            raise Interrupted("SIGTERM after step 3 of 9; its state is kept")

    with pytest.raises(SystemExit) as stop:
        stopped()
    assert stop.value.code == EXIT_AGAIN
    assert not Path("results/make").exists()
    assert Path("results/.make.work/a state").is_dir()
    assert "call snakemake again" in Path("results/logs/make.log").read_text()
    work(rule(), "whole")
    assert Path("results/make/a.txt").read_text() == "whole"
    assert not Path("results/.make.work").exists()
