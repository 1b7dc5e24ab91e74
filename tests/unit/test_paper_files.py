"""Tables of differences, needs and costs; macros; the zip; the first page; model cards."""

import re
import zipfile
from pathlib import Path
from typing import Any

import docutils.core  # type: ignore[import-untyped]
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from iskd.errors import UserError
from iskd.paper.bundle import write_bundle
from iskd.paper.card import model_card
from iskd.paper.main_table import main_table
from iskd.paper.metrics import tidy
from iskd.paper.numbers import macro_name, numbers_table, save_numbers
from iskd.paper.queries import at_headline, chance_levels, reductions_of
from iskd.paper.resources import costs_columns, costs_table, efficiency_columns, efficiency_table
from iskd.paper.significance import significance_columns, significance_table
from iskd.paper.style import task_title
from iskd.paper.summary import STYLE, summary_page
from iskd.paper.tables import save_table
from tests.unit.synthetic import GPT2_TASKS, chance_of, headline_of, make_metrics

HEADLINE, CHANCE = headline_of(GPT2_TASKS), chance_of(GPT2_TASKS)
STEPS = {"gpt2": 6}
SPEC = {
    "study": "synthetic",
    "seeds": [17, 18, 19],
    "corpus": "stories_of {mine}",
    "root": "f" * 64,
}


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    metrics, measurements = make_metrics()
    return tidy(metrics), tidy(measurements)


def one(table: pd.DataFrame, **where: object) -> pd.Series:
    found = table[(table[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


# --- tables ---------------------------------------------------------------------------------


def test_differences_stand_beside_what_they_rest_on(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    metrics = at_headline(tables[0], STEPS)
    table = significance_table(metrics, HEADLINE)
    row = one(table, arm="iskd", task="hellaswag")
    own = metrics[(metrics["arm"] == "iskd") & (metrics["step"] == 6)]
    own = own[own["task"] == "hellaswag"]
    by = {name: rows["value"] for name, rows in own.groupby("metric")}
    assert row["difference"] == pytest.approx(by["acc_norm_difference"].mean())
    assert (row["p_low"], row["p_high"]) == pytest.approx(
        (by["acc_norm_mcnemar"].min(), by["acc_norm_mcnemar"].max())
    )
    assert row["flipped"] == pytest.approx(by["acc_norm_flipped"].mean())
    assert (row["n"], row["clusters"], row["seeds"]) == (10042, 10042, 3)
    assert set(table["task"]) == {*HEADLINE, "heldout", "wikitext_text"}
    assert "teacher" not in set(table["arm"])


def test_speed_and_costs_stand_beside_size(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    metrics, measurements = (at_headline(table, STEPS) for table in tables)
    needs = efficiency_table(metrics, measurements)
    row = one(needs, arm="iskd")
    # The paper's compact block is deeper: fewer parameters, and slower at batch 1.
    assert row["model/parameters"] < one(needs, arm="teacher")["model/parameters"]
    assert row["efficiency/decode_b1_ratio"] < 1
    assert row["efficiency/decode_b1_ratio/low"] <= row["efficiency/decode_b1_ratio"]
    assert 0.3 < row["efficiency/draft_acceptance"] < 0.8
    heads = [(column.group, column.head) for column in efficiency_columns(needs)]
    assert heads[-2:] == [("As a draft", "% accepted"), ("As a draft", "×")]
    other = measurements[~measurements["metric"].str.startswith("draft")]
    groups = [column.group for column in efficiency_columns(efficiency_table(metrics, other))]
    assert "As a draft" not in groups
    costs = costs_table(metrics, measurements)
    assert one(costs, arm="iskd")["cost/device_hours"] > 0
    assert pd.isna(one(costs, arm="teacher")["training/tokens"])


def test_claims_stand_below_ours(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    claims = [
        {"teacher": "gpt2", "task": task, "metric": metric, "reduction": 0.3068}
        | {"retention": kept, "source": "ISKD, COLING 2025"}
        for task, metric, kept in (("hellaswag", "acc_norm", 0.9425), ("cbt_question", "acc", 0.8))
    ]
    metrics = at_headline(tables[0], STEPS)
    row = one(main_table(metrics, HEADLINE, CHANCE, claims=claims), arm="(claimed)")
    assert row["hellaswag/acc_norm/retention"] == 0.9425
    assert row["cbt_question/acc/retention"] == 0.8
    assert pd.isna(row["hellaswag/acc_norm"])


def test_every_table_is_written_in_four_forms(
    tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    metrics, measurements = (at_headline(table, STEPS) for table in tables)
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        main = main_table(metrics, HEADLINE, CHANCE)
        save_table(main, folder / "main", "Main.", "tab:main")
        differs = significance_table(metrics, HEADLINE)
        columns = significance_columns(differs)
        save_table(differs, folder / "significance", "Differences.", "tab:d", columns)
        needs = efficiency_table(metrics, measurements)
        columns = efficiency_columns(needs)
        save_table(needs, folder / "efficiency", "Needs.", "tab:e", columns)
        costs = costs_table(metrics, measurements)
        save_table(costs, folder / "costs", "Costs.", "tab:c", costs_columns(costs))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 4 * 4
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "other" / name).read_bytes()
        assert b"nan" not in data.lower().replace(b"nano", b"")
        if name.endswith(".tex"):
            text = data.decode()
            assert text.isascii()
            assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 0


# --- macros ---------------------------------------------------------------------------------


def test_names_of_macros_are_letters() -> None:
    assert macro_name("gpt2", "kd", "heldout", "loss") == r"\iskdGptTwoKdHeldoutLoss"
    assert macro_name("phi-1", "l1", "decode_b32") == r"\iskdPhiOneLOneDecodeBThreeTwo"


def test_every_number_has_a_macro(
    tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    metrics, measurements = tables
    table = numbers_table(metrics, STEPS)
    # At the step that is reported, or where an arm has no such step, at its last before.
    assert set(table["step"]) == {0, 6}
    assert table["macro"].is_unique
    row = one(table, arm="iskd", task="model", metric="reduction")
    assert (row["text"], row["unit"]) == ("30.68", "%")
    row = one(table, arm="iskd", task="cbt_context", metric="acc")
    at = metrics[(metrics["arm"] == "iskd") & (metrics["step"] == 6)]
    own = at[(at["task"] == "cbt_context") & (at["metric"] == "acc")]["value"]
    assert row["value"] == pytest.approx(own.mean())
    assert row["text"] == f"{100 * own.mean():.1f}"
    assert row["seeds"] == 3
    save_numbers(table, tmp_path / "numbers", "Numbers.")
    tex = (tmp_path / "numbers.tex").read_text()
    lines = tex.splitlines()[1:]
    assert len(lines) == len(table)
    assert all(re.match(r"\\newcommand\{\\iskd[A-Za-z]+\}\{.*\} % ", line) for line in lines)
    assert r"\newcommand{\iskdGptTwoIskdReduction}{30.68}" in tex
    measured = numbers_table(measurements, STEPS)
    assert "efficiency" in set(measured["task"])
    assert not set(measured["macro"]) & set(table["macro"])
    # Whoever measures nothing has no macro for it.
    assert numbers_table(measurements[:0], STEPS).empty


def test_two_numbers_of_one_name_are_refused(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    metrics = tables[0]
    dashed = metrics[metrics["arm"] == "kd"].assign(arm="k-d")
    underscored = metrics[metrics["arm"] == "kd"].assign(arm="k_d")
    with pytest.raises(UserError, match="two numbers would be called"):
        numbers_table(pd.concat([metrics, dashed, underscored]), STEPS)


# --- the zip --------------------------------------------------------------------------------


def test_a_bundle_is_the_same_bytes_and_lists_what_is_in_it(tmp_path: Path) -> None:
    files = {}
    for name, text in (("b.tex", "B"), ("a.csv", "A")):
        (tmp_path / name).write_text(text)
        files[name] = tmp_path / name
    write_bundle(files, "mine", tmp_path / "one.zip")
    (tmp_path / "b.tex").touch()
    write_bundle(dict(reversed(files.items())), "mine", tmp_path / "other.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["mine/README.txt", "mine/a.csv", "mine/b.tex"]
        assert "a.csv\nb.tex" in archive.read("mine/README.txt").decode()


# --- the first page, and cards --------------------------------------------------------------


def test_the_first_page_is_readable_and_says_what_came_out(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    text = summary_page(tables[0], HEADLINE, CHANCE, STEPS, SPEC)
    strict = {"halt_level": 2, "report_level": 2, "raw_enabled": False}
    page = docutils.core.publish_string(text, writer="html", settings_overrides=strict).decode()
    assert "30.7 % fewer than gpt2" in page
    assert "Tuned teacher" in page
    assert page.count("<table") == 1
    # The report fills in templates, which a study's own words must not become.
    assert "{" not in text
    # Its style goes before it, as Snakemake reads it, and is no template either.
    page = docutils.core.publish_parts(STYLE + text, writer="html")["body"]
    assert "<style>\ndiv.grow" in page
    assert not {"{{", "{%", "{#"} & {STYLE[i : i + 2] for i in range(len(STYLE))}


def test_a_card_holds_the_numbers_and_the_hubs_metadata(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    metrics, measurements = tables
    model = {"teacher": "gpt2", "arm": "iskd", "seed": 17, "step": 6}
    spec: dict[str, Any] = {"study": "synthetic", "method": "iskd"}
    spec |= {"base_model": "openai-community/gpt2"}
    spec |= {"corpus": "TinyStories", "licence": "mit", "given": True, "datasets": []}
    spec |= {"tasks": list(HEADLINE)[::-1], "texts": ["heldout"]}
    written = {
        own: model_card(
            *(metrics, measurements, model, HEADLINE, spec),
            stored="BF16",
            origin={"gguf": "my.gguf", "quantization": "Q4_0 (3 tensors)"},
            own_code=own,
        )
        for own in (True, False)
    }
    card = ModelCard(written[True])
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"]) == ("openai-community/gpt2", "transformers")
    assert data["license"] == "mit"
    assert "trust_remote_code=True" in card.text
    assert "trust_remote_code" not in written[False]
    assert "import iskd" not in written[False]
    results = data["model-index"][0]["results"]
    assert {r["dataset"]["type"] for r in results} == set(HEADLINE)
    own = metrics[(metrics["arm"] == "iskd") & (metrics["step"] == 6) & (metrics["seed"] == 17)]
    score = own[(own["task"] == "hellaswag") & (own["metric"] == "acc_norm")]["value"].iloc[0]
    found = [r for r in results if r["dataset"]["type"] == "hellaswag"]
    assert found[0]["metrics"][0]["value"] == pytest.approx(score, abs=1e-6)
    assert f"{100 * score:.1f} " in card.text
    assert "tokens/s" in card.text
    # A line for each task, in the study's order.
    lines = [line for line in card.text.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    wanted = [task_title(task) for task in spec["tasks"]]
    assert [name for name in names if name in wanted] == wanted
    assert names.count("Held-out text") == 1


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "`teachers.gpt2.licence` and `teachers.gpt2.base_model` in the study's config"),
        ({"licence": "mit"}, "Not known here: `teachers.gpt2.base_model` in the study's config"),
        ({"licence": "mit", "base_model": "a/b"}, "The teacher's licence, mit, and its terms"),
        ({"given": False}, "The teacher was trained in this study, on the corpus above."),
    ],
)
def test_a_card_says_what_is_not_known_of_the_teacher(
    known: dict[str, Any], said: str, tables: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    model = {"teacher": "gpt2", "arm": "iskd", "seed": 17, "step": 6}
    spec: dict[str, Any] = {
        "study": "s",
        "method": "iskd",
        "corpus": "c",
        "datasets": [],
        "given": True,
    }
    spec |= {"tasks": list(HEADLINE), "texts": [], "licence": None, "base_model": None, **known}
    text = model_card(*tables, model, HEADLINE, spec, stored="F32", origin={})
    assert said in text
    assert ("Not known" in text) == (known.get("given", True) and "base_model" not in known)


def test_levels_of_chance_and_reductions_are_read_from_the_table() -> None:
    metrics, _ = make_metrics(steps=2)
    rows = tidy([*metrics, {**metrics[0], "task": "cbt_context", "metric": "chance", "value": 0.1}])
    assert chance_levels(rows) == {"cbt_context": 0.1}
    found = reductions_of(rows)
    assert found["gpt2", "teacher", None, 0] == 0
    assert found["gpt2", "iskd", 17, 2] == pytest.approx(2 * 6_362_496 / 124_439_808)
