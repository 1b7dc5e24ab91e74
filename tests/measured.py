"""Which files of a study hold what a clock or a sensor measured: no second run has them again.

All others are the same bytes whenever and wherever the study is made on the same kind of processor;
whoever compares two results asks here what to leave out.
"""

import re

MEASURED_RULES = (
    "measure_efficiency",
    "collect_measurements",
    "figure_pareto",
    "table_efficiency",
    "table_costs",
    "paper_measured_numbers",
    "paper_bundle",
    "model_card",
)
"""Rules whose artifacts hold measured times, memory or energy, or are made from them."""

# Logs, Snakemake's benchmarks and run.json say how and when, beside every artifact.
_REPORTS = re.compile(r"(^logs/|^benchmarks/|^tracking/|/run\.json$)")
# It names the digest of every file in the folder, the measured ones among them.
_PAPER = ("paper/manifest.json",)
# Model cards lie beside the weights too; no artifact has a README of its own.
_CARD = "README.md"
_TABLE = "measurements.csv"


def is_measured(name: str) -> bool:
    """Tell whether a file may differ between two runs of one study.

    Args:
        name: the file's path below ``results/<study>/``, with forward slashes.
    """
    if _REPORTS.search(name) or name in _PAPER:
        return True
    folder, _, file = name.rpartition("/")
    if file == _CARD or (folder in ("", "paper") and file == _TABLE):
        return True
    # Files of the paper carry the name of the rule that made them in front.
    place = file if folder == "paper" else name
    return any(re.match(rf"{rule}[/_.]", place) for rule in MEASURED_RULES)
