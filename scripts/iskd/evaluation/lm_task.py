"""lm-eval's tasks around rows of ours: importing this module takes seconds.

The rows come from memory instead of the hub; what a task makes of them (prompts, answers, metrics,
aggregation) is lm-eval's.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from tqdm import tqdm

from iskd.data.rows import Row
from iskd.errors import UserError
from iskd.evaluation.catalogue import LmTask
from iskd.evaluation.kinds import Kind
from iskd.evaluation.tasks import cbt

if TYPE_CHECKING:
    from lm_eval.api.model import LM

_OWN_TASKS = Path(cbt.__file__).parent
_LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
_SPLITS = ("training_split", "validation_split", "test_split")


def kind_task(kind: Kind, rows: Sequence[Row], seed: int) -> ConfigurableTask:
    """Make the task of a kind around its rows, to be run without examples."""
    # One type per column is all that Arrow takes, and exports differ in the label's.
    docs = [
        {field: str(row[field]) if field == "label" else row[field] for field in kind.fields}
        for row in rows
    ]
    settings = {
        # Examples for prompts would come from there, and none are used.
        "training_split": None,
        "num_fewshot": 0,
    }
    folders = [_OWN_TASKS, _LM_EVAL_TASKS / "hellaswag"]
    return _loaded(kind.name, folders, {kind.split: _dataset(docs)}, settings, seed)


def stock_task(
    task: LmTask,
    rows: Sequence[Row],
    *,
    examples: Sequence[Row] = (),
    fewshot: int = 0,
    seed: int = 0,
) -> ConfigurableTask:
    """Make a task of lm-eval around rows in the schema of its data set.

    Args:
        task: what its YAML says.
        rows: the rows to evaluate.
        examples: rows of its split for examples; needed where `fewshot` is above 0.
        fewshot: examples in each prompt.
        seed: seed of their draw.

    Raises:
        UserError: the rows do not fit the task.
    """
    found = {task.split: _dataset(rows)}
    settings: dict[str, Any] = {"num_fewshot": fewshot}
    if fewshot and task.fewshot_split and examples:
        found[task.fewshot_split] = _dataset(examples)
    elif not fewshot:
        # lm-eval reads the split for examples also where none are used.
        settings |= {"fewshot_split": None, "fewshot_config": None}
    settings |= {key: None for key in _SPLITS if task.options.get(key) not in found}
    try:
        made = _loaded(task.name, [task.path.parent], found, settings, seed)
        made.build_all_requests()
        for doc in made.eval_docs:
            _check_gold(made, doc)
    except UserError:
        raise
    except Exception as error:
        # Templates and functions of thousands of tasks meet rows they were not made for.
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise UserError(
            f"the rows do not fit lm-eval's task {task.name} ({reason}); "
            f"give rows in the schema of its data set"
        ) from error
    return made


def gold(task: ConfigurableTask, doc: Row) -> int | list[int]:
    """Give the place of the right option of a multiple-choice item, or of all right ones."""
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, str):
        return int(task.doc_to_choice(doc).index(right))
    return [int(place) for place in right] if isinstance(right, list) else int(right)


def run_task(lm: "LM", name: str, task: ConfigurableTask) -> tuple[list[Row], dict[str, float]]:
    """Let lm-eval evaluate a task.

    Nothing is read from the network and nothing is written to the cache of `datasets`.

    Returns:
        lm-eval's record of each row, in the rows' order, and the metrics as it aggregates them
    """
    # Zero bootstrap rounds leave the standard errors to the caller.
    results = evaluate(lm, {"tasks": {name: task}}, bootstrap_iters=0)
    records = sorted(results["samples"][name], key=lambda record: record["doc_id"])
    numbers = results["results"][name]
    ending = ",none"
    return records, {
        key.removesuffix(ending): value
        for key, value in numbers.items()
        if key.endswith(ending) and not key.endswith(f"_stderr{ending}")
    }


def _dataset(rows: Sequence[Row]) -> datasets.Dataset:
    # from_list takes the first row's fields for everybody's.
    fields = dict.fromkeys(field for row in rows for field in row)
    return datasets.Dataset.from_dict({f: [row.get(f) for row in rows] for f in fields})


def _loaded(
    name: str,
    folders: Sequence[Path],
    found: dict[str, datasets.Dataset],
    settings: dict[str, Any],
    seed: int,
) -> ConfigurableTask:
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=list(folders))
    override = {"task": name, "custom_dataset": lambda **_: found, **settings}
    # Only as members of a group do registered tasks take overrides.
    task = manager.load([{"group": "iskd", "task": [override]}])["tasks"][name]
    task.set_fewshot_seed(seed)
    return task


def _check_gold(task: ConfigurableTask, doc: Row) -> None:
    """Refuse an item whose right answer is none of its options: lm-eval would count it as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results is not None:
        return
    options = task.doc_to_choice(doc)
    right = gold(task, doc)
    for place in right if isinstance(right, list) else [right]:
        if not 0 <= place < len(options):
            raise UserError(
                f"a row's right answer is number {place} of {len(options)} options: lm-eval's task "
                f"{task.config.task} needs rows with answers, which a test split often lacks"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's notes out of the log, and its bars and those of `datasets` off the screen."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # No argument reaches this bar. What a job shows is iskd.progress's.
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = tqdm
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
