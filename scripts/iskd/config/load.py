"""Check a config before anything runs; every finding is one line with file, key and remedy."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iskd.config.checks import Checks
from iskd.config.corpus_rules import check_stories
from iskd.config.findings import first_finding, shown
from iskd.config.model_checks import check_given_model
from iskd.config.schema import FileCorpus, FileTask, FileText, FolderTeacher, Study
from iskd.data.row_kinds import read_rows
from iskd.data.rows import read_any_rows
from iskd.data.texts import read_texts
from iskd.errors import UserError
from iskd.evaluation.kinds import KINDS

# Larger files are read once, by the rule that uses them, and not at every start of Snakemake.
CHECK_AT_START_BYTES = 64 * 2**20

# Of a config. The largest that is shipped has 5 layers and some 250 values.
MOST_LAYERS = 12
MOST_VALUES = 100_000
LARGEST = 10**308


def refuse_outsize(raw: Any, file: str) -> None:
    """Refuse what no study holds, before it is compared with the schema or printed.

    An alias that holds itself has no end, aliases of aliases have thousands of millions of values,
    Python prints no number of more than 4300 digits, and a terminal obeys some characters.

    Raises:
        UserError: one of these is there.
    """
    waiting, seen = [(raw, ())], 0  # type: list[tuple[Any, tuple[str, ...]]], int
    while waiting:
        value, path = waiting.pop()
        seen += 1
        key = ".".join(path) or "(top level)"
        if seen > MOST_VALUES or len(path) > MOST_LAYERS:
            raise UserError(
                f"{file}: {key}: more than {MOST_LAYERS} layers, or {MOST_VALUES} values in all; "
                "look for an alias (*name) of something that holds it"
            )
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{file}: {key}: a number of more than 308 digits; give a smaller one")
        if isinstance(value, Mapping):
            for name in value:
                if not (
                    isinstance(name, str) and name.isprintable() and 1 <= len(name.strip()) <= 64
                ):
                    raise UserError(
                        f"{file}: {key}: {shown(name)} is no key; use 1 to 64 characters that "
                        "can be seen, and quotes around a number, a date, yes or no"
                    )
            inner = list(value.items())
        else:
            inner = list(enumerate(value)) if isinstance(value, list | tuple) else []
        waiting += [(item, (*path, str(name))) for name, item in reversed(inner)]


def load_study(raw: Mapping[str, Any], file: str) -> Study:
    """Check a config as read from YAML and give it typed, with all defaults filled in.

    Args:
        raw: the parsed file.
        file: its name, for the messages.

    Raises:
        UserError: the first finding, as one line with file, key and remedy.
    """
    refuse_outsize(raw, file)
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{file}: {first_finding(error)}") from None
    Checks(study, file).run()
    return study


def data_folder(study: Study, file: str) -> Path:
    """Find the folder of the study's local files; see :func:`find_data_folder`."""
    return find_data_folder(study.data_folder, file)


def find_data_folder(named: str | None, file: str) -> Path:
    """Find the folder that a config's ``data_folder`` names.

    Raises:
        UserError: it is not named, the environment variable is not set, or there is no such folder.
    """
    if named is None:
        raise UserError(f"{file}: data_folder: missing; name the folder of the local files")
    if named.startswith("$"):
        value = os.environ.get(named[1:])
        if not value:
            raise UserError(
                f"{file}: data_folder: the environment variable {named[1:]} is not set; "
                f"set it to the folder that holds the local files"
            )
        folder = Path(value)
    else:
        folder = Path(named)
    if not _is(folder.is_dir):
        raise UserError(f"{file}: data_folder: {folder} is no folder; name one that exists")
    return folder


def _is(question: Callable[[], bool]) -> bool:
    """Ask whether there is a file or folder; where a name is too long, there is none."""
    try:
        return question()
    except OSError:
        return False


def check_data_files(study: Study, file: str) -> None:
    """Look at every local file a study names, before any job runs.

    Raises:
        UserError: a file is missing, empty, or has a row that lacks what is needed; or the
            corpus's stories are too few.
    """
    wanted, models = list(_named_files(study)), list(_model_files(study))
    if not wanted and not models:
        return
    folder = data_folder(study, file)
    for key, name in models:
        if not _is((folder / name).is_file):
            raise UserError(f"{file}: {key}: {name} is not there; put it into {folder}")
    for name in study.teachers:
        check_given_model(study, name, folder, file)
    stories: list[str] = []
    whole = isinstance(study.corpus, FileCorpus)
    for key, name, kind in wanted:
        path = folder / name
        if not _is(path.is_file):
            raise UserError(f"{file}: {key}: {name} is not there; put it into {folder}")
        of_corpus = key.startswith("corpus.")
        if path.stat().st_size > CHECK_AT_START_BYTES:
            whole = whole and not of_corpus
            continue
        try:
            if kind is None:
                texts = read_texts(path)
                stories += texts if of_corpus else []
            elif kind in KINDS:
                read_rows(path, kind)
            else:
                read_any_rows(path)
        except UserError as error:
            raise UserError(f"{file}: {key}: {error}") from None
    if whole:
        check_stories(study, stories, file)


def put_stand_ins(study: Study) -> None:
    """Put an empty file wherever a study names a local one, below the working directory.

    For a plan of a study whose data are not at hand: Snakemake asks for files that nothing makes.
    """
    wanted = [name for _, name, _ in _named_files(study)]
    wanted += [name for _, name in _model_files(study)]
    if not wanted or study.data_folder is None:
        return
    if study.data_folder.startswith("$"):
        folder = Path.cwd() / "data"
        os.environ[study.data_folder[1:]] = str(folder)
    else:
        folder = Path(study.data_folder)
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _model_files(study: Study) -> Iterator[tuple[str, str]]:
    """Give the files of models in local folders: key, and name below the data folder."""
    for name, teacher in study.teachers.items():
        if isinstance(teacher, FolderTeacher):
            for place, file in enumerate(teacher.files):
                yield f"teachers.{name}.files.{place}", f"{teacher.folder}/{file}"


def _named_files(study: Study) -> Iterator[tuple[str, str, str | None]]:
    """Give the local files that a study names: key, name, and for a task's rows the kind."""
    texts = {"corpus": study.corpus} if isinstance(study.corpus, FileCorpus) else {}
    found = {f"texts.{n}": text for n, text in study.texts.items() if isinstance(text, FileText)}
    for key, text in (texts | found).items():
        for place, name in enumerate(text.files):
            yield f"{key}.files.{place}", name, None
    for name, task in study.tasks.items():
        if isinstance(task, FileTask):
            yield f"tasks.{name}.file", task.file, task.kind or name
