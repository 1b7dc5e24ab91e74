# What the rules share: the checked study, and functions that find inputs and parameters.

import os
import sys
from pathlib import Path

SCRIPTS = Path(workflow.basedir).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from iskd.config import StudyPlan, check_data_files, data_folder, load_study
from iskd.config.schema import FileCorpus, HubCorpus, HubTeacher, Replacing, ToyCorpus
from iskd.config.study import ModelId
from iskd.errors import UserError
from iskd.locks import read_holder, take_lock
from iskd.provenance.fingerprint import code_fingerprint
from iskd.provenance.times import settle_times


def config_name():
    """Name the file the study was read from, for messages."""
    files = workflow.configfiles
    return os.path.relpath(files[-1]) if files else "config"


def checked_study():
    """Check the config and the local files it names; a mistake ends Snakemake in one line."""
    try:
        study = load_study(config, config_name())
        if workflow.is_main_process:
            check_data_files(study, config_name())
        return study
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def lock_study():
    """Keep a second Snakemake off the study until this one ends, however it ends."""
    file = Path(".snakemake", f"{STUDY.study}.lock")
    if take_lock(file) is None:
        holder = read_holder(file) or {"pid": "?", "host": "?"}
        print(
            f"study {STUDY.study}: snakemake already runs it in this folder (process "
            f"{holder['pid']} on {holder['host']}); wait for its end, or stop it first",
            file=sys.stderr,
        )
        sys.exit(1)


STUDY = checked_study()
PLAN = StudyPlan(STUDY)
HUB_LOCK = f"results/{STUDY.study}/hub.lock.json"

# Before Snakemake looks at them: results that were copied here have the times of their copying.
if workflow.is_main_process:
    settle_times(Path("results", STUDY.study))

TEACHER_FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
MODEL_FILES = [*TEACHER_FILES, "history.jsonl"]


wildcard_constraints:
    teacher="[a-z0-9][a-z0-9_-]*",
    arm="[a-z0-9][a-z0-9_-]*",
    task="[a-z0-9][a-z0-9_-]*",
    seed="[0-9]+",
    step="[0-9][0-9]+",
    model="[a-z0-9][a-z0-9_-]*/[a-z0-9][a-z0-9_-]*(/seed_[0-9]+/step_[0-9][0-9]+)?",
