"""A workflow of somebody else's has this one make its models, as docs/as-a-module.md says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Clone, make_clone

PAGE = (ROOT / "docs/as-a-module.md").read_text(encoding="utf-8")
STUDY = yaml.safe_load((ROOT / "tests/config/tiny.yaml").read_text(encoding="utf-8"))
TEACHER = "compression/results/tiny/pretrain_teacher/toy/manifest.json"


def blocks(language: str) -> list[str]:
    """Give the page's code."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def make_user(folder: Path, study: Any = STUDY) -> Clone:
    """Lay out the user's workflow, with a clone of ours beside it."""
    make_clone(folder / "iskd-workflow")
    user = Clone(folder / "user")
    (user.folder / "workflow/profiles/default").mkdir(parents=True)
    (snakefile,), (profile,) = blocks("python"), blocks("yaml")
    (user.folder / "Snakefile").write_text(snakefile)
    (user.folder / "config.yaml").write_text(yaml.safe_dump({"compression": study}))
    (user.folder / "workflow/profiles/default/config.yaml").write_text(profile)
    return user


@pytest.fixture
def user(tmp_path: Path) -> Clone:
    return make_user(tmp_path)


def test_a_users_own_target_plans_what_it_needs(user: Clone) -> None:
    planned = user.planned()
    assert {"iskd_pretrain_teacher", "iskd_table_main", "copy_table"} <= set(planned)
    assert planned["iskd_substitute_block"] == 2
    # Of our own target nothing that the user does not ask for.
    assert not {"iskd_collect_paper", "iskd_table_costs"} & set(planned)
    assert "iskd_paper_bundle" in user.planned("iskd_all")


def test_the_page_runs_on_a_finished_study(user: Clone, finished: Clone) -> None:
    shutil.copytree(finished.folder / "results", user.folder / "compression/results")
    # Whatever the times of a copy: they are put in order below the prefix, too.
    for path in (user.folder / "compression/results/tiny/make_toyworld").iterdir():
        path.touch()
    assert user.planned() == {"copy_table": 1, "use_model": 1}
    done = user.snakemake("-c", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    table = (user.folder / "table.csv").read_text()
    assert table == (finished.folder / "results/tiny/table_main/main.csv").read_text()
    model = (user.folder / "model.txt").read_text().strip()
    assert (user.folder / model / "model.safetensors").is_file()
    clone = Clone(user.folder.parent / "iskd-workflow")
    verdict = clone.iskd("verify", "--fast", str(user.folder / "compression/results/tiny"))
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_a_users_workflow_makes_the_same_artifacts(user: Clone, finished: Clone) -> None:
    done = user.snakemake("-c", "1", TEACHER)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {p.name for p in user.folder.iterdir()} == {
        *("Snakefile", "config.yaml", "workflow", "compression", ".snakemake")
    }
    top = user.folder / "compression/results/tiny"
    made = [path.relative_to(top) for path in top.rglob("manifest.json")]
    assert len(made) == 4
    for name in made:
        ours = finished.folder / "results/tiny" / name
        assert (top / name).read_bytes() == ours.read_bytes()

    # The code of the clone counts, and none that happens to be installed.
    clone = Clone(user.folder.parent / "iskd-workflow")
    clone.edit("scripts/pretrain_teacher.py", "with run_rule", "_X = 1\nwith run_rule")
    assert user.planned(TEACHER) == {"iskd_pretrain_teacher": 1}


def test_local_files_stay_where_they_are(tmp_path: Path) -> None:
    stories = [json.dumps({"text": f"Fox {n} saw a hen. The hen saw it."}) for n in range(20)]
    corpus = {"source": "files", "files": ["stories.jsonl"], "block_length": 64}
    tasks = {"hellaswag": {"source": "file", "file": "rows.jsonl"}}
    row = {"activity_label": "Fox", "ctx_a": "A fox", "ctx_b": "", "label": "0"}
    rows = json.dumps({**row, "endings": ["ran", "sat", "ate", "hid"]})
    study = STUDY | {"corpus": corpus, "tasks": tasks, "data_folder": "data"}
    user = make_user(tmp_path, study)
    (user.folder / "data").mkdir()
    (user.folder / "data/stories.jsonl").write_text("\n".join(stories) + "\n")
    (user.folder / "data/rows.jsonl").write_text(f"{rows}\n")
    done = user.snakemake("-n", "compression/results/tiny/table_main/main.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"input: data/stories\.jsonl$", done.stdout + done.stderr, re.MULTILINE)
    assert re.search(r"input: data/rows\.jsonl$", done.stdout + done.stderr, re.MULTILINE)


def test_a_mistake_names_the_module(tmp_path: Path) -> None:
    done = make_user(tmp_path, STUDY | {"seed": 3}).snakemake("-n")
    assert done.returncode == 1
    assert "config of module iskd: seed: unknown key; did you mean 'seeds'?" in done.stderr


# --- fetched instead of cloned --------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def fetched(user: Clone, ref: str) -> None:
    """Have the user's Snakefile take the workflow from a commit, as github() would."""
    where = f'gitfile("../iskd-workflow", path="workflow/Snakefile", {ref})'
    user.edit("Snakefile", '"../iskd-workflow/workflow/Snakefile"', where)


def test_a_workflow_that_is_fetched_brings_its_library(user: Clone, finished: Clone) -> None:
    clone = user.folder.parent / "iskd-workflow"
    git(clone, "init")
    git(clone, "add", "--all")
    git(clone, "commit", "-m", "all")
    commit = git(clone, "rev-parse", "HEAD")
    fetched(user, f'commit="{commit}"')
    # What is not in the commit is not used.
    (clone / "scripts/iskd/errors.py").write_text("broken")
    world = "results/tiny/make_toyworld/manifest.json"
    done = user.snakemake("-c", "1", f"compression/{world}")
    assert done.returncode == 0, done.stderr[-4000:]
    made = (user.folder / "compression" / world).read_bytes()
    assert made == (finished.folder / world).read_bytes()
    place = user.folder / ".snakemake/iskd"
    assert [path.name for path in place.iterdir()] == [commit]
    run = json.loads((user.folder / "compression" / world).with_name("run.json").read_text())
    assert run["git"]["commit"] == commit
    assert user.planned(f"compression/{world}") == {}


def test_a_commit_that_cannot_be_checked_out_ends_in_one_line(
    user: Clone, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    git(user.folder.parent / "iskd-workflow", "init")
    whole = (ROOT / "workflow/rules/whole.smk").read_text(encoding="utf-8")

    class Source:
        repo_path, ref = "../iskd-workflow", "v9"

    class Basedir:
        current_basedir = Source
        modifier = type("Modifier", (), {"namespace": "iskd"})

    monkeypatch.chdir(user.folder)
    with pytest.raises(SystemExit):
        exec(compile(whole, "whole.smk", "exec"), {"workflow": Basedir})  # noqa: S102 - ours
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "module iskd" in line]
    assert "the commit v9 of the workflow cannot be checked out" in line


def test_a_package_that_is_missing_is_named(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    # Python imports this module when it starts.
    (tmp_path / "first/sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    done = clone.snakemake("-n", "-q", PYTHONPATH=str(tmp_path / "first"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "the Python package torch is missing: call Snake"
    )


# --- in a container -------------------------------------------------------------------------

# Takes the place of apptainer: runs the command outside of any image, and notes the image.
APPTAINER = """#!/bin/sh
if [ "$1" = --version ]; then echo apptainer version 1.3.0; exit; fi
while [ "$1" != -c ]; do image=$shell; shell=$1; shift; done
echo "$image" >> images.txt
exec "$shell" -c "$2"
"""


def test_jobs_run_in_the_image_that_is_named(clone: Clone, tmp_path: Path) -> None:
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER)
    program.chmod(0o755)
    path = os.pathsep.join(
        [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    call = (
        *("results/tiny/make_toyworld/manifest.json", "--configfile", "tests/config/tiny.yaml"),
        *("-c", "1", "--software-deployment-method", "apptainer"),
    )
    done = clone.snakemake("-n", *call, PATH=path)
    assert done.returncode == 1
    message = "there is no image iskd.sif; make it as envs/Containerfile says and name it in"
    assert message in done.stderr.splitlines()[-1]
    (clone.folder / "mine.sif").touch()
    done = clone.snakemake(*call, PATH=path, ISKD_CONTAINER="mine.sif")
    assert done.returncode == 0, done.stderr[-4000:]
    images = (clone.folder / "images.txt").read_text(encoding="utf-8").split()
    assert [Path(image).name for image in images] == ["mine.sif"]
