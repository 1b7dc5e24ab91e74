"""The main table: raw numbers, the same for readers, and its bytes."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from iskd.errors import UserError
from iskd.paper import metrics as metrics_module
from iskd.paper.ablation_table import ablation_table
from iskd.paper.columns import Column
from iskd.paper.layout import figure_page, html_table
from iskd.paper.main_table import MAIN_TABLE_NOTE, main_table
from iskd.paper.metrics import tidy, write_metrics
from iskd.paper.tables import save_table

HEADLINE = {"hellaswag": "acc_norm", "cbt_context": "acc"}
CHANCE = {"hellaswag": 0.25}
Row = dict[str, Any]


def model_rows(arm: str, step: int, parameters: int, scores: list[float], **more: Any) -> list[Row]:
    model = {"study": "toy", "teacher": "gpt2", "arm": arm, "seed": 17, "step": step}
    model |= {"reduction": 1 - parameters / 124_439_808, "stderr": 0.005, "n": 1000} | more
    tasks = (("hellaswag", "acc_norm"), ("cbt_context", "acc"), ("heldout", "loss"))
    rows = [
        model | {"task": task, "metric": metric, "value": value}
        for (task, metric), value in zip(tasks, scores, strict=False)
    ]
    count = {
        "task": "model",
        "metric": "parameters",
        "value": parameters,
        "stderr": None,
        "n": None,
    }
    return [*rows, model | count]


def study_rows() -> list[Row]:
    rows = model_rows("teacher", 0, 124_439_808, [0.35, 0.8, 2.5], seed=None)
    for seed, shift in ((17, -0.01), (18, 0.01)):
        rows += model_rows("iskd", 6, 86_264_832, [0.3 + shift, 0.6, 2.75], seed=seed)
        rows += model_rows("iskd", 1, 118_077_312, [0.34, 0.7, 2.6], seed=seed)
    return rows + model_rows("my_arm", 3, 105_352_320, [0.2])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return main_table(tidy(study_rows()), HEADLINE, CHANCE)


def test_right_answers_and_what_a_model_writes_stand_last(tmp_path: Path) -> None:
    beside = [
        ("choices", "gold_bits_per_byte", 0.9),
        ("generation", "teacher_loss", 3.0),
        ("generation", "distinct_3", 0.7),
    ]
    rows = study_rows()
    rows += [
        {**row, "task": task, "metric": metric, "value": value}
        for row in rows
        if row["metric"] == "parameters"
        for task, metric, value in beside
    ]
    found = main_table(tidy(rows), HEADLINE, CHANCE)
    assert not [
        name for name in found.columns if name.startswith("generation/") and "retention" in name
    ]
    save_table(found, tmp_path / "main", "main", "tab:main")
    heads = (tmp_path / "main.md").read_text(encoding="utf-8").splitlines()[2].split(" | ")
    assert [head.rstrip(" |") for head in heads[-3:]] == [
        "Right answers bits/byte",
        "Generation loss under teacher (nats/token)",
        "Generation distinct 3-grams (%)",
    ]


def test_the_main_table_has_unrounded_numbers(table: pd.DataFrame) -> None:
    assert table["arm"].tolist() == ["teacher", "iskd", "my_arm"]
    assert table["step"].tolist() == [0, 6, 3]
    assert table["seeds"].tolist() == [1, 2, 1]
    assert table["parameters"].tolist() == [124_439_808, 86_264_832, 105_352_320]
    iskd_row = table.iloc[1]
    assert iskd_row["reduction"] == pytest.approx(0.306775, abs=1e-6)
    assert iskd_row["hellaswag/acc_norm"] == pytest.approx(0.3)
    assert iskd_row["hellaswag/acc_norm/spread"] == pytest.approx(0.01 * math.sqrt(2))
    assert iskd_row["hellaswag/acc_norm/spread_of"] == "seeds"
    assert iskd_row["hellaswag/acc_norm/retention"] == pytest.approx(0.3 / 0.35)
    assert iskd_row["hellaswag/acc_norm/corrected_retention"] == pytest.approx(0.5)
    assert iskd_row["cbt_context/acc/retention"] == pytest.approx(0.75)
    # No chance level is known for it; a loss has no retention.
    assert "cbt_context/acc/corrected_retention" not in table.columns
    assert "heldout/loss/retention" not in table.columns
    other = table.iloc[2]
    assert other["hellaswag/acc_norm/corrected_retention"] == pytest.approx(-0.5)
    assert math.isnan(other["heldout/loss"])
    assert other["heldout/loss/spread_of"] == ""


def test_each_arm_is_measured_against_its_own_teacher() -> None:
    rows = study_rows()
    rows += [r | {"teacher": "phi-1", "value": r["value"] / 2} for r in study_rows()]
    table = main_table(tidy(rows), HEADLINE, {})
    assert list(zip(table["teacher"], table["arm"], table["step"], strict=True)) == [
        (teacher, arm, step)
        for teacher in ("gpt2", "phi-1")
        for arm, step in (("teacher", 0), ("iskd", 6), ("my_arm", 3))
    ]
    # Each arm is measured against its own teacher.
    kept = table["hellaswag/acc_norm/retention"]
    assert kept[:3].tolist() == pytest.approx(kept[3:].tolist())


def test_mistakes_are_reported(tmp_path: Path, table: pd.DataFrame) -> None:
    metrics = tidy(study_rows())
    with pytest.raises(UserError, match="teacher gpt2 itself"):
        main_table(metrics[metrics["arm"] != "teacher"], HEADLINE, CHANCE)
    with pytest.raises(UserError, match="was not measured"):
        main_table(metrics, {"hellaswag": "acc"}, CHANCE)
    with pytest.raises(UserError, match="label"):
        save_table(table, tmp_path / "main", "caption", "tab:a_b")


def test_a_table_is_written_as_markdown(tmp_path: Path, table: pd.DataFrame) -> None:
    save_table(table, tmp_path / "main", "What a_b keeps", "tab:main")
    assert (tmp_path / "main.md").read_text(encoding="utf-8").splitlines() == [
        r"Table: What a\_b keeps",
        "",
        r"| Arm | Step | Seeds | Parameters | Reduction (%) "
        r"| HellaSwag acc\_norm (%) | HellaSwag kept (%) | HellaSwag margin (%) "
        "| CBT, with context acc (%) | CBT, with context kept (%) "
        "| Held-out text loss (nats/token) |",
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| Teacher | 0 | 1 | 124,439,808 | 0.0 | 35.0 ± 0.5 | 100.0 | 100.0 "
        "| 80.0 ± 0.5 | 100.0 | 2.500 ± 0.005 |",
        "| ISKD | 6 | 2 | 86,264,832 | 30.7 | 30.0 ± 1.4 | 85.7 | 50.0 "
        "| 60.0 ± 0.0 | 75.0 | 2.750 ± 0.000 |",
        "| My arm | 3 | 1 | 105,352,320 | 15.3 | 20.0 ± 0.5 | 57.1 | -50.0 | – | – | – |",
    ]


def test_a_table_as_html_is_no_wider_than_the_page(tmp_path: Path, table: pd.DataFrame) -> None:
    save_table(table, tmp_path / "main", "caption", "tab:main")
    page = (tmp_path / "main.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 1
    arms = Column("", "Arm", "", ["Teacher", "ISKD"], is_text=True, is_key=True)
    tasks = [
        Column(f"Task {number}", head, "%", ["100.0", "97.1 [94.3, 100.0]"])
        for number in range(8)
        for head in ("acc", "kept")
    ]
    text = html_table([arms, *tasks])
    assert text.count("<table>") == text.count(">Arm<") > 1
    assert text.count('class="group"') == 8
    # An interval stands below its number.
    assert "<td>97.1<br><small>[94.3, 100.0]</small></td>" in text
    heads = [line.count("<th") for line in text.splitlines() if ">Arm<" in line]
    assert max(heads) <= 11


def test_a_figures_page_has_its_caption_below() -> None:
    svg = '<?xml version="1.0"?>\n<svg height="10pt" viewBox="0 0 9 9" width="20pt"><g/></svg>\n'
    page = figure_page(svg, "**toy** at <1>, see\n``metrics.csv``, *not* more.")
    assert '<svg viewBox="0 0 9 9" width="1000"><g/></svg>' in page
    caption = "<strong>toy</strong> at &lt;1&gt;, see <code>metrics.csv</code>, <em>not</em> more."
    assert page.index("</svg>") < page.index(f"<figcaption>{caption}</figcaption>")
    assert "<?xml" not in page


def test_csv_is_for_machines(tmp_path: Path, table: pd.DataFrame) -> None:
    save_table(table, tmp_path / "main", "caption", "tab:main")
    with (tmp_path / "main.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["parameters"] == "86264832"
    assert float(rows[1]["reduction"]) == pytest.approx(1 - 86_264_832 / 124_439_808)
    assert rows[2]["heldout/loss"] == ""


def balanced(tex: str) -> bool:
    depth = 0
    for token in re.findall(r"\\.|[{}]", tex):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth < 0:
            return False
    return depth == 0


def test_a_table_is_written_as_latex_that_fits_a_page(tmp_path: Path, table: pd.DataFrame) -> None:
    save_table(table, tmp_path / "main", "50 % of a_b & {c} \\ #1 ^~ <$>", "tab:main")
    tex = (tmp_path / "main.tex").read_text(encoding="utf-8")
    assert balanced(tex)
    assert tex.isascii()
    environments = re.findall(r"\\(begin|end)\{(.*?)\}", tex)
    # What does not fit beside one another stands below, in the same float.
    inner = [("begin", "tabular"), ("end", "tabular")]
    assert environments == [("begin", "table*"), *inner, *inner, ("end", "table*")]
    assert r"\begin{tabular}{lrrrrrrrrr}" in tex
    assert r"\begin{tabular}{lrr}" in tex
    lines = tex.splitlines()
    rules = [lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == sorted(rules)
    heads, body = lines[rules[0] + 1], lines[rules[1] + 1 : rules[2]]
    spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", heads)]
    assert spans == [3, 2]
    assert heads.count(" & ") + 1 - len(spans) + sum(spans) == 10
    assert all(line.count(" & ") == 9 and line.endswith(r" \\") for line in body)
    assert r"\cmidrule(lr){6-8}\cmidrule(lr){9-10}" in lines
    assert r"\cmidrule(lr){3-3}" in lines
    assert r"30.0 $\pm$ 1.4 & 85.7 & 50.0" in tex
    assert "$-$50.0 & -- & --" in tex
    assert (
        r"\caption{50 \% of a\_b \& \{c\} \textbackslash{} \#1 "
        r"\textasciicircum{}\textasciitilde{} \textless{}\$\textgreater{}}"
    ) in lines
    assert r"\label{tab:main}" in lines


def test_a_rule_parts_teachers_and_a_wide_table_is_smaller(tmp_path: Path) -> None:
    rows = study_rows() + [r | {"teacher": "phi_1"} for r in study_rows()]
    chance = CHANCE | {"cbt_context": 0.1}
    save_table(main_table(tidy(rows), HEADLINE, chance), tmp_path / "wide", MAIN_TABLE_NOTE, "t")
    tex = (tmp_path / "wide.tex").read_text(encoding="utf-8")
    # One below each head and one between the teachers, in both tables that it takes.
    assert tex.count(r"\begin{tabular}") == 2
    assert tex.count(r"\midrule") == 4
    assert r"phi\_1 & Teacher" in tex
    assert r"\scriptsize" in tex
    assert tex.isascii()


def test_any_other_table_can_be_saved(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"name": ["[a]", "b|c"], "tokens/s": [1234.5678, -0.0001], "layers": [12, 1800]}
    )
    save_table(frame, tmp_path / "speed", "Speed", "tab:speed")
    markdown = (tmp_path / "speed.md").read_text(encoding="utf-8").splitlines()
    assert markdown[2:] == [
        "| name | tokens/s | layers |",
        "| :--- | ---: | ---: |",
        r"| \[a\] | 1,234.568 | 12 |",
        r"| b\|c | 0.000 | 1,800 |",
    ]
    tex = (tmp_path / "speed.tex").read_text(encoding="utf-8")
    assert "{[}a{]} & 1,234.568 & 12" in tex
    assert balanced(tex)


PROGRAM = """
import sys
from pathlib import Path
from iskd.paper.metrics import read_metrics
from iskd.paper.main_table import main_table
from iskd.paper.tables import save_table
metrics = read_metrics(Path(sys.argv[1]))
table = main_table(metrics, {"hellaswag": "acc_norm", "cbt_context": "acc"}, {"hellaswag": 0.25})
save_table(table, Path(sys.argv[2]) / "main", "caption ± –", "tab:main")
"""


def test_the_bytes_are_the_same_anywhere(tmp_path: Path, table: pd.DataFrame) -> None:
    there = tmp_path / "there"
    there.mkdir()
    save_table(table, tmp_path / "main", "caption ± –", "tab:main")
    write_metrics(reversed(study_rows()), there / "metrics.csv")
    env = os.environ | {"HOME": str(there), "TZ": "Pacific/Chatham", "PYTHONHASHSEED": "4711"}
    env |= {"LC_ALL": "C", "PYTHONPATH": str(Path(metrics_module.__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "metrics.csv", str(there)], cwd=there, env=env, check=True
    )
    for suffix in ("csv", "md", "tex"):
        assert (tmp_path / f"main.{suffix}").read_bytes() == (there / f"main.{suffix}").read_bytes()


# --- the ablation ---------------------------------------------------------------------------


def cost_rows(rows: list[Row], tokens: int, flops: float) -> list[Row]:
    """Give what the models of the rows cost, and what they cost to run."""
    model_keys = ("study", "teacher", "arm", "seed", "step", "reduction")
    models = {tuple(row[key] for key in model_keys) for row in rows}
    costs = (("training", "tokens", tokens), ("training", "flops", flops))
    found = []
    for model in models:
        plain = dict(zip(model_keys, model, strict=True)) | {"stderr": None, "n": None}
        found.append(plain | {"task": "model", "metric": "flops_per_token", "value": 7})
        if plain["arm"] != "teacher":
            found += [plain | {"task": t, "metric": m, "value": v} for t, m, v in costs]
    return found


def ablation_rows() -> list[Row]:
    rows = model_rows("teacher", 0, 124_439_808, [0.35, 0.8, 2.0], seed=None)
    for seed, shift in ((17, -0.01), (18, 0.01)):
        rows += model_rows("paper", 2, 700, [0.3, 0.6, 2.4 + shift], seed=seed)
        rows += model_rows("paper_kl", 2, 700, [0.3, 0.7, 2.1 + shift], seed=seed)
    rows += model_rows("worse", 2, 600, [0.3, 0.5, 2.6])
    return rows + cost_rows(rows, 4096, 1.5e12)


def test_the_ablation_says_who_closes_how_much_of_the_gap() -> None:
    table = ablation_table(tidy(ablation_rows()), HEADLINE, "paper")
    assert table["arm"].tolist() == ["teacher", "paper_kl", "paper", "worse"]
    assert table["gap"].tolist() == pytest.approx([0.0, 0.1, 0.4, 0.6])
    assert table["closed"].tolist() == pytest.approx([1.0, 0.75, 0.0, -0.5])
    assert table["heldout/loss/spread"].tolist()[1] == pytest.approx(0.01 * math.sqrt(2))
    assert table["tokens"].tolist()[1:] == [4096] * 3
    assert pd.isna(table["tokens"].iloc[0])
    assert table["training_flops"].tolist()[1:] == [1.5e12] * 3
    assert table["flops_per_token"].tolist() == [7] * 4


def test_without_a_baseline_nothing_is_closed(tmp_path: Path) -> None:
    table = ablation_table(tidy(ablation_rows()), HEADLINE, None)
    assert table["closed"].isna().all()
    save_table(table, tmp_path / "ablation", "Arms.", "tab:arms")
    text = (tmp_path / "ablation.md").read_text()
    assert "Gap (nats/token)" in text
    assert "1.5e+12" in text
