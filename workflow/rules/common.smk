# What the rules share: the checked study, and functions that find inputs and parameters.

import importlib.util
import logging
import os
import sys
import time
from pathlib import Path

# Not workflow.basedir: where this workflow is a module, that is the folder of its user's.
RULES = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
SCRIPTS = RULES.parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
# Snakemake puts a script's own folder behind what is installed, and an installed iskd may be that of
# another clone. What runs has to be what is fingerprinted.
if str(SCRIPTS) not in os.environ.get("PYTHONPATH", "").split(os.pathsep)[:1]:
    others = [path for path in [os.environ.get("PYTHONPATH")] if path]
    os.environ.update(PYTHONPATH=os.pathsep.join([str(SCRIPTS), *others]))

from snakemake.settings.enums import Quietness

from iskd.config import (
    check_data_files,
    check_fetched_corpus,
    complete,
    data_folder,
    load_study,
    model_notes,
    put_stand_ins,
)
from iskd.config.schema import (
    FileText,
    HubCorpus,
    FolderTeacher,
    HubTeacher,
    HubText,
    Replacing,
    ToyCorpus,
)
from iskd.devices import visible_gpus
from iskd.errors import UserError
from iskd.plan import HELDOUT, ModelId, StudyPlan, given_folders
from iskd.provenance.fingerprint import code_fingerprint
from iskd.provenance.presence import put_aside_incomplete
from iskd.provenance.times import settle_times
from iskd.runtime.locks import read_holder, take_lock
from iskd.runtime.tracking import check_packages
from iskd.runtime.workdir import sweep
from iskd.planned_jobs import PlannedJobs
from iskd.progress import NOTES
from iskd.screen import is_terminal
from iskd.study_progress import SHOW, StudyProgress, how_much, is_routine

# The name under which another workflow uses this one, if one does. (`is_module` is always true.)
MODULE = workflow.modifier.namespace


def config_name():
    """Name the file the study was read from, for messages."""
    if MODULE is not None:
        return f"config of module {MODULE}"
    files = workflow.configfiles
    return os.path.relpath(files[-1]) if files else "config"


def results_folder(study):
    """Find a study's folder: below the working directory, or below the prefix of a module."""
    results = workflow.modifier.path_modifier.replace_prefix("results")
    return Path(results, study)


def check_environment():
    """Check that the packages which jobs import are installed where Snakemake is.

    Whoever deploys the workflow may call it from an environment that has Snakemake alone.
    """
    for name in (
        "torch",
        "transformers",
        "lm_eval",
        "safetensors",
        "pandas",
        "seaborn",
    ):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"the Python package {name} is missing: call Snakemake from the environment of "
                "envs/requirements.lock (`make` makes it in .venv), or with "
                "--software-deployment-method conda"
            )


def checked_study():
    """Check the config and the local files it names; a mistake ends Snakemake in one line."""
    try:
        alone = "ISKD_PLAN_ONLY" in os.environ
        raw = complete(
            config,
            config_name(),
            lambda study: results_folder(study) / "hub.lock.json",
            ask=workflow.is_main_process and not alone,
        )
        study = load_study(raw, config_name())
        if alone:  # tools/plan.py, in an empty folder
            put_stand_ins(study)
        elif workflow.is_main_process:
            check_data_files(study, config_name())
            check_fetched_corpus(study, results_folder(study.study), config_name())
            if not workflow.deployment_settings.deployment_method:
                # Otherwise jobs have packages of their own, and look for them themselves.
                check_environment()
                check_packages(
                    study.tracking.trackers, f"{config_name()}: tracking.report_to"
                )
        return study
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def check_reductions():
    """Refuse a reduction out of reach, and say what is kept of each model in a local folder."""
    try:
        data = data_folder(STUDY, config_name()) if STUDY.data_folder else None
        folders = given_folders(STUDY, data, results_folder(STUDY.study))
        PLAN.check_reductions(folders, config_name())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    if not workflow.output_settings.quiet:
        for note in model_notes(STUDY, config_name()):
            print(note, file=sys.stderr)


def in_container():
    """Say whether jobs are asked to run in a container (--software-deployment-method apptainer)."""
    methods = workflow.deployment_settings.deployment_method
    return any(method.name == "APPTAINER" for method in methods)


def image():
    """Name the image that jobs run in; there is none to fetch, so it has to be made first."""
    named = os.environ.get("ISKD_CONTAINER", "iskd.sif")
    if "://" not in named and not Path(named).is_file():
        print(
            f"--software-deployment-method apptainer: there is no image {named}; make it as "
            "envs/Containerfile says and name it in the environment variable ISKD_CONTAINER",
            file=sys.stderr,
        )
        sys.exit(1)
    return named


def lock_study():
    """Keep a second Snakemake off the study until this one ends, however it ends."""
    # A call that only looks, as `snakemake -n`, may hold it for a moment (tidy_results).
    until = time.monotonic() + 3
    while (lock := take_lock(STUDY_LOCK)) is None and time.monotonic() < until:
        time.sleep(0.1)
    if lock is None:
        holder = read_holder(STUDY_LOCK) or {"pid": "?", "host": "?"}
        print(
            f"study {STUDY.study}: snakemake already runs it in this folder (process "
            f"{holder['pid']} on {holder['host']}); wait for its end, or stop it first",
            file=sys.stderr,
        )
        sys.exit(1)


def take_turns_at_the_gpu():
    """Run one job at a time on this machine's GPU, unless the caller has given how many.

    Snakemake limits no resource that it was not given, and two jobs would share a card's memory.
    Where trainings share several GPUs there are as many turns as these ask for.
    """
    if (
        workflow.local_exec
        and "gpu" not in workflow.global_resources
        and visible_gpus()
    ):
        most = max(teacher.gpus for teacher in STUDY.teachers.values())
        workflow.register_resource("gpu", most)
        # That tells a scheduler that is at work how much is free, and not to count it.
        workflow.scheduler.global_resources["gpu"] = most


def tidy_results():
    """Put the results in order before Snakemake looks at them, unless another one is at work."""
    results = results_folder(STUDY.study)
    if not results.is_dir():
        return
    try:
        STUDY_LOCK.parent.mkdir(exist_ok=True)
        lock = take_lock(STUDY_LOCK)
    except OSError:
        return  # no right to write here: the results are only looked at
    if lock is not None:
        sweep(results)
        missing = put_aside_incomplete(results)
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            print(
                f"missing, so their artifacts count as not made: {missing[0]}{more}",
                file=sys.stderr,
            )
        settle_times(results)
        os.close(lock)


STUDY = checked_study()
PLAN = StudyPlan(STUDY)
# Below the prefix of a module, if this is one: `job.top` of iskd.runtime.job.
HUB_LOCK = f"results/{STUDY.study}/hub.lock.json"

STUDY_LOCK = Path(".snakemake", f"{STUDY.study}.lock")


def checked_show():
    """Read how much the study shall show; a mistake ends Snakemake in one line."""
    try:
        shown = how_much(os.environ.get(SHOW))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    output = workflow.output_settings
    # With --verbose Snakemake tells of each job itself; -q silences lines of jobs only.
    quiet = {Quietness.ALL, Quietness.RULES, Quietness.PROGRESS} & set(
        output.quiet or ()
    )
    return "study" if shown == "jobs" and (output.verbose or quiet) else shown


PROGRESS = StudyProgress(
    STUDY.study,
    benchmarks=results_folder(STUDY.study) / "benchmarks",
    shown=checked_show(),
)


def show_progress():
    """Have jobs say how far they are, and a terminal keep the study's line."""
    settings = workflow.execution_settings
    if PROGRESS.shown == "nothing" or settings.debug or settings.edit_notebook:
        return
    if workflow.local_exec:
        os.environ[NOTES] = str(PROGRESS.take_notes())
    if is_terminal():
        PROGRESS.start_screen()


def say_what_failed(logs):
    """End with the jobs that failed, and where their logs are."""
    PROGRESS.end()
    print(PROGRESS.failed_words(logs), file=sys.stderr)


def say_what_was_made(logs):
    """Say what a study that ran to its end has made."""
    PROGRESS.end()
    if PROGRESS.shown != "nothing":
        words = PROGRESS.closing_words(results_folder(STUDY.study), logs)
        print(words, file=sys.stderr)


def follow_snakemake():
    """Show a line per job in the place of what Snakemake says of each, except in its log file."""
    log = logging.getLogger("snakemake.logging")
    log.addHandler(PROGRESS)
    output = workflow.output_settings
    if PROGRESS.shown != "nothing" and not (output.verbose or output.debug_dag):
        for handler in log.handlers:
            # The file has everything. A screen that --logger names has its own ways.
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(lambda record: not is_routine(record))


def list_planned():
    """Show a line per job of a dry run; --verbose has files, reasons and resources."""
    output = workflow.output_settings
    as_it_is = output.verbose or output.debug_dag or output.quiet
    if PROGRESS.shown != "nothing" and not as_it_is:
        for handler in logging.getLogger("snakemake.logging").handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(PlannedJobs(handler.stream))


if workflow.is_main_process:
    if "ISKD_PLAN_ONLY" not in os.environ:
        check_reductions()
    # A workflow that has this one as a module has jobs of its own to tell of.
    if MODULE is None and workflow.output_settings.dryrun:
        list_planned()
    elif MODULE is None:
        follow_snakemake()
    tidy_results()


def first_page():
    """Give the report's first page: what came out, once it is there."""
    page = results_folder(STUDY.study) / "summarize" / "summary.rst"
    return str(page.resolve()) if page.exists() else "report/workflow.rst"


# Weights are one file or several, by their size: the manifest names them, and a folder that lacks
# one of them is put aside before Snakemake looks (`tidy_results`).
TEACHER_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
CHECKPOINT_FILES = [*TEACHER_FILES, "history.jsonl"]


wildcard_constraints:
    teacher="[a-z0-9][a-z0-9_-]*",
    arm="[a-z0-9][a-z0-9_-]*",
    task="[a-z0-9][a-z0-9_-]*",
    text="[a-z0-9][a-z0-9_-]*",
    maker="[a-z0-9_]+",
    answers="[a-z0-9][a-z0-9_.-]*",
    seed="[0-9]+",
    step="[0-9][0-9]+",
    model="[a-z0-9][a-z0-9_-]*/[a-z0-9][a-z0-9_-]*(/seed_[0-9]+/step_[0-9][0-9]+)?",
