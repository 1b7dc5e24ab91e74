"""Put a finished study's picture and numbers into the documentation: nothing quoted is typed.

``python tools/published.py results/<study>`` copies the picture of scores against reduction to
docs/, the rows of metrics.csv that can be quoted to docs/runs/<study>.csv, and what they come from
(digests of files and statements) to docs/runs/<study>.json. Then all tables that begin with a
comment ``<!-- table: {run: <study>, ...} -->`` are written anew, in README.md and in docs/. With
``--check`` nothing is written: the exit code is 1 if a table is not what the kept rows give, or a
picture is not the one that was copied.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iskd.audit.folder import METRICS, PAPER, StudyFolder
from iskd.audit.trace import request_digest
from iskd.errors import UserError
from iskd.paper.formats import quantity, with_spread, with_unit
from iskd.paper.measures import MEASURES, PARAMETERS
from iskd.paper.metrics import read_metrics, write_metrics
from iskd.paper.queries import aggregate, rows_of
from iskd.paper.style import task_title
from iskd.provenance.artifact import file_digest

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path("docs/runs")
TABLE = re.compile(r"^(<!-- table: (\{[^>]*\}) -->\n\n).*?(?=\n\n|\n?\Z)", re.DOTALL | re.MULTILINE)


def quotable(metrics: pd.DataFrame) -> pd.DataFrame:
    """Pick what is quoted of a study: scores, losses and sizes of each arm's last step."""
    last = metrics.groupby(["teacher", "arm"])["step"].transform("max")
    sizes = (metrics["task"] == PARAMETERS[0]) & (metrics["metric"] == PARAMETERS[1])
    return metrics[(metrics["step"] == last) & (sizes | metrics["metric"].isin(MEASURES))]


def publish(study: Path, root: Path = ROOT) -> None:
    """Copy picture and rows of a finished study, and write the tables that quote it.

    Args:
        study: its folder of results.
        root: the checkout whose documentation is written.

    Raises:
        UserError: the study has not ended.
    """
    folder = StudyFolder(study)
    metrics = read_metrics(study / "metrics.csv")
    (root / RUNS).mkdir(parents=True, exist_ok=True)
    name = metrics["study"].iloc[0]
    write_metrics(quotable(metrics), root / RUNS / f"{name}.csv")
    facts: dict[str, Any] = {
        "study": name,
        "metrics": {
            "sha256": file_digest(study / "metrics.csv"),
            "statement": _found(folder, METRICS).digest,
        },
        "pictures": {},
    }
    teachers = sorted(set(metrics["teacher"]))
    for teacher in teachers:
        # By the study, as several may be of one teacher.
        file = f"figure_tradeoff_{name if len(teachers) == 1 else f'{name}_{teacher}'}.png"
        shutil.copyfile(study / PAPER / f"figure_tradeoff_{teacher}.png", root / "docs" / file)
        place = f"figure_tradeoff/{teacher}"
        facts["pictures"][file] = {
            "sha256": file_digest(root / "docs" / file),
            "request": request_digest(_found(folder, place)),
            "statement": _found(folder, place).digest,
        }
    text = json.dumps(facts, indent=2, sort_keys=True)
    (root / RUNS / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    for page, new in pages(root):
        page.write_text(new, encoding="utf-8")


def _found(folder: StudyFolder, place: str) -> Any:
    found = folder.artifacts.get(place)
    if found is None or found.statement is None:
        raise UserError(f"{folder.path}: {place} is not there; has the study ended?")
    return found


def pages(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Give each page that has such tables, and its text with the tables as they should be."""
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        new = TABLE.sub(lambda found: found[1] + table(yaml.safe_load(found[2]), root), text)
        if TABLE.search(text):
            yield page, new


def table(what: dict[str, Any], root: Path = ROOT) -> str:
    """Write a table for readers.

    Args:
        what: ``run``, the study; ``columns``, each as task/metric; ``arms``, their names by arm.
        root: the checkout.
    """
    metrics = read_metrics(root / RUNS / f"{what['run']}.csv")
    means = aggregate(metrics)
    columns = [tuple(column.split("/")) for column in what["columns"]]
    heads = [_head(*column) for column in columns]
    lines = [["Arm", *heads], [":---", *["---:"] * len(columns)]]
    for arm, title in what["arms"].items():
        own = means[means["arm"] == arm]
        if own.empty:
            raise UserError(f"{RUNS / what['run']}.csv: there is no arm {arm}")
        lines.append([title, *(_cell(rows_of(own, *column), *column) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(task: str, metric: str) -> str:
    if (task, metric) == PARAMETERS:
        return "Parameters"
    how = quantity(task, metric)
    unit = how.unit if how.unit == "%" else ""
    return with_unit(task_title(task) + (" loss" if metric == "loss" else ""), unit)


def _cell(rows: pd.DataFrame, task: str, metric: str) -> str:
    if rows.empty:
        return "–"
    value, spread = rows["value"].iloc[0], rows["spread"].iloc[0]
    if (task, metric) == PARAMETERS:
        return f"{value / 1e6:.1f} M"
    return with_spread(value, spread, quantity(task, metric))


def stale(root: Path = ROOT) -> list[str]:
    """Say what is not as the kept rows and files have it."""
    wrong = [
        f"{page.relative_to(root)}: a table is not what {RUNS} has"
        for page, new in pages(root)
        if page.read_text(encoding="utf-8") != new
    ]
    for file in sorted((root / RUNS).glob("*.json")):
        for picture, facts in json.loads(file.read_text(encoding="utf-8"))["pictures"].items():
            if file_digest(root / "docs" / picture) != facts["sha256"]:
                wrong.append(f"docs/{picture}: not the one of {RUNS / file.name}")
    return wrong


def main() -> None:
    """Publish a study, or check what is published."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, nargs="?", help="a finished study's folder of results")
    parser.add_argument("--check", action="store_true", help="only say whether all is up to date")
    given = parser.parse_args()
    if given.study is not None and not given.check:
        try:
            publish(given.study)
        except (UserError, OSError) as error:
            sys.exit(f"published.py: {error}")
    wrong = stale()
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
