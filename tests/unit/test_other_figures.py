"""Figures of loss, fronts, training, changed answers and order: what they draw; that it fits."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from iskd.errors import UserError
from iskd.paper.figures.canvas import MOST_PANELS, save_figure
from iskd.paper.figures.flips import flips_figure
from iskd.paper.figures.loss import loss_figure
from iskd.paper.figures.order import order_figure, read_changes
from iskd.paper.figures.pareto import pareto_figure
from iskd.paper.figures.tradeoff import tradeoff_figure
from iskd.paper.figures.training import read_curves, training_figure
from iskd.paper.metrics import read_metrics, tidy, write_metrics
from iskd.paper.style import arm_styles
from tests.unit.synthetic import (
    GPT2_TASKS,
    chance_of,
    headline_of,
    make_metrics,
    some_arms,
)

HEADLINE, CHANCE = headline_of(GPT2_TASKS), chance_of(GPT2_TASKS)
Drawn = tuple[Figure, pd.DataFrame]
CLAIMS: list[dict[str, Any]] = [
    {"teacher": "gpt2", "task": "hellaswag", "metric": "acc_norm"}
    | {"reduction": 0.3068, "retention": 0.9425, "source": "the paper"}
]


def curves() -> list[dict[str, Any]]:
    rows = []
    for place, arm in enumerate(["iskd", "best", "kd", "teacher_tuned"]):
        for seed in (1, 2):
            for step in (1, 2, 3) if arm in ("iskd", "best") else (3,):
                for i in range(30):
                    tokens = (step - 1) * 6000 * (place < 2) + 200 * (i + 1)
                    loss = 3 - 0.01 * i + 0.1 * step + 0.2 * place + 0.02 * seed
                    rows.append(
                        {"arm": arm, "seed": seed, "step": step, "tokens": tokens, "loss": loss}
                    )
    return rows


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    metrics, measurements = make_metrics()
    return tidy(metrics), tidy(measurements)


FIGURES: dict[str, Callable[[pd.DataFrame, pd.DataFrame], Drawn]] = {
    "tradeoff": lambda m, _: tradeoff_figure(m, HEADLINE, CHANCE, "gpt2", CLAIMS),
    "loss": lambda m, _: loss_figure(m, "gpt2"),
    "pareto": lambda m, e: pareto_figure(m, e, "gpt2"),
    "flips": lambda m, _: flips_figure(m, HEADLINE, "gpt2"),
    "order": lambda m, _: order_figure(m, "gpt2"),
    "training": lambda m, _: training_figure(curves(), ["iskd", "best"]),
}


@pytest.fixture(scope="module")
def drawn(tables: tuple[pd.DataFrame, pd.DataFrame]) -> dict[str, Drawn]:
    return {name: make(*tables) for name, make in FIGURES.items()}


# --- what is drawn --------------------------------------------------------------------------


def test_losses_stand_at_their_step(drawn: dict[str, Drawn]) -> None:
    figure, frame = drawn["loss"]
    assert list(dict.fromkeys(frame["text"])) == ["heldout", "wikitext_text"]
    own = frame[(frame["text"] == "heldout") & (frame["arm"] == "iskd")]
    assert own["step"].tolist() == list(range(1, 13))
    style = arm_styles(["iskd"])["iskd"]
    (line,) = [li for li in figure.axes[0].lines if li.get_marker() == style.marker]
    assert np.allclose(np.asarray(line.get_ydata(), float), own["score"].to_numpy(float))
    assert np.allclose(np.asarray(line.get_xdata(), float), own["step"].to_numpy(float))


def test_no_marker_of_a_step_hides_another_ones() -> None:
    figure, frame = loss_figure(tidy(make_metrics(steps=4)[0]), "gpt2")
    for axes, (_, part) in zip(figure.axes, frame.groupby("text", sort=False), strict=True):
        arms = [str(arm) for arm in part["arm"].unique() if arm != "teacher"]
        markers = {style.marker for style in arm_styles(arms).values()}
        lines = [li for li in axes.lines if li.get_marker() in markers]
        assert len(lines) == len(arms)
        places = [np.asarray(line.get_xdata(), float) for line in lines]
        alone = [float(own[0]) for own in places if len(own) == 1]
        joined = {float(x) for own in places if len(own) > 1 for x in own}
        points = axes.get_position().width * figure.get_figwidth() * 72 / np.ptp(axes.get_xlim())
        gaps = np.diff(sorted([*alone, *joined])) * points
        assert all(gaps > 4), "markers of about four points lie on one another"


def test_the_front_is_those_that_nobody_beats(drawn: dict[str, Drawn]) -> None:
    _, frame = drawn["pareto"]
    assert list(dict.fromkeys(frame["axis"])) == ["parameters", "decode", "memory"]
    for axis, part in frame.groupby("axis"):
        costs = -part["x"] if axis == "decode" else part["x"]
        points = list(zip(costs, part["score"], part["on_front"], strict=True))
        for cost, loss, on_front in points:
            beaten = any(c <= cost and s <= loss and (c, s) != (cost, loss) for c, s, _ in points)
            assert on_front is not beaten
        front = sorted((c, s) for c, s, on in points if on)
        assert all(one[1] >= other[1] for one, other in pairwise(front))


def test_axes_of_the_front_end_in_ticks_and_its_signs_are_named(drawn: dict[str, Drawn]) -> None:
    figure, _ = drawn["pareto"]
    for axes in figure.axes:
        for limits, ticks in (
            (axes.get_xlim(), axes.get_xticks()),
            (axes.get_ylim(), axes.get_yticks()),
        ):
            assert sorted(limits) == [min(ticks), max(ticks)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == [
        "Pale: another one is better in both",
        "Front: no model beats these in both",
    ]


def test_without_measurements_the_front_has_one_panel(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    figure, frame = pareto_figure(tables[0], None, "gpt2")
    assert len(figure.axes) == 1
    assert set(frame["axis"]) == {"parameters"}


def test_flips_are_never_fewer_than_the_accuracy_says(drawn: dict[str, Drawn]) -> None:
    _, frame = drawn["flips"]
    assert (frame["score"] >= frame["change"].abs() - 1e-9).all()
    assert frame["task"].nunique() == 6  # those that are accuracies, as far as they fit


def test_flips_near_zero_are_apart_and_the_dotted_line_is_straight(
    drawn: dict[str, Drawn],
) -> None:
    figure, _ = drawn["flips"]
    for axes in figure.axes:
        dotted = next(line for line in axes.lines if len(np.asarray(line.get_xdata())) == 3)
        ends = axes.transScale.transform(np.asarray(dotted.get_xydata(), float))
        assert ends[0][0] == pytest.approx(-ends[0][1])
        (near,), (far,) = (axes.transScale.transform([(x, 0.0)])[:, 0] for x in (2.0, 60.0))
        assert near > 0.2 * far  # on a linear axis it would be a thirtieth


def test_each_step_adds_what_its_loss_is_above_the_last_ones(
    tables: tuple[pd.DataFrame, pd.DataFrame], drawn: dict[str, Drawn]
) -> None:
    _, frame = drawn["order"]
    own = frame[frame["arm"] == "iskd"].set_index("step")
    assert own["blocks"].tolist() == ["5", "7", "3", "9", "1", "11", "2", "10", "4", "8", "6", "0"]
    metrics = tables[0]
    losses = metrics[(metrics["task"] == "heldout") & (metrics["metric"] == "loss")]
    means = losses[losses["arm"] == "iskd"].groupby("step")["value"].mean()
    start = float(losses.loc[losses["arm"] == "teacher", "value"].iloc[0])
    assert own.loc[1, "score"] == pytest.approx(means[1] - start)
    assert own.loc[4, "score"] == pytest.approx(means[4] - means[3])


def test_seeds_that_replaced_different_blocks_name_them_all() -> None:
    metrics, _ = make_metrics(steps=3, random_order=["iskd"])
    _, frame = order_figure(tidy(metrics), "gpt2")
    assert any("/" in blocks for blocks in frame.loc[frame["arm"] == "iskd", "blocks"])


def test_the_order_says_what_was_changed_and_what_it_cost(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    seeds = tables[0]["seed"].dropna().unique()
    told = {("iskd", int(seed), 1): "3 heads, 5 mlp" for seed in seeds}
    figure, frame = order_figure(tables[0], "gpt2", told)
    own = frame[frame["arm"] == "iskd"].set_index("step")
    assert own.loc[1, "changed"] == "3 heads, 5 mlp"
    assert own.loc[2, "changed"] == "block 7"
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "ISKD"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["1: 3 heads, 5 mlp", "2: block 7"]
    # The number at a bar's end is its value, and not a block's.
    values = [text.get_text() for text in axes.texts]
    assert values[1].replace("\N{MINUS SIGN}", "-") == f"{float(own['score'][2]):+.3f}"
    assert not figure.legends


def test_changes_are_put_into_words(tmp_path: Path) -> None:
    steps = [
        '{"block": 3}',
        '{"block": 0, "changes": [{"block": 0, "kind": "heads"}, {"block": 2, "kind": "mlp"},'
        ' {"block": 0, "kind": "heads"}, {"block": 0, "kind": "neurons"}]}',
        '{"block": null, "changes": []}',
    ]
    about = [{"teacher": "t", "arm": "a", "seed": 1, "step": step} for step in (1, 2, 3)]
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, text in zip(files, steps, strict=True):
        file.write_text(text)
    names = [str(file) for file in files]
    assert list(read_changes(names, about, "t").values()) == [
        "block 3",
        "heads of 0; mlp of 2; neurons of 0",
        "nothing",
    ]
    assert read_changes(names, about, "other") == {}


def test_the_order_shows_only_the_arms_that_are_drawn() -> None:
    names = [f"arm_{number}" for number in range(MOST_PANELS + 1)]
    own = [row for row in make_metrics(steps=2)[0] if row["arm"] in ("teacher", "iskd")]
    rows = [row for row in own if row["arm"] == "teacher"]
    rows += [{**row, "arm": name} for name in names for row in own if row["arm"] == "iskd"]
    figure, frame = order_figure(tidy(rows), "gpt2")
    assert sorted(set(frame["arm"])) == names[:-1]
    assert len(figure.axes) == MOST_PANELS


def test_curves_go_on_across_the_steps_of_a_chain(tmp_path: Path) -> None:
    histories, about = [], []
    for step, losses in ((1, (3.0, 2.0)), (2, (2.5, 1.5))):
        path = tmp_path / f"{step}.jsonl"
        warm = '{"phase": "warm_start", "tokens": 5, "loss": 9}\n'
        lines = [
            f'{{"phase": "joint", "tokens": {10 * (i + 1)}, "loss": {loss}}}\n'
            for i, loss in enumerate(losses)
        ]
        path.write_text(warm + "".join(lines))
        histories.append(str(path))
        about.append({"teacher": "t", "arm": "iskd", "seed": 1, "step": step})
    spec = {"histories": about, "chained": ["iskd"], "mixed": []}
    rows = read_curves(histories, spec, "t")
    assert [(row["tokens"], row["loss"]) for row in rows] == [
        *((10, 3.0), (20, 2.0)),
        *((30, 2.5), (40, 1.5)),
    ]
    # Steps that do not build on one another each begin at 0.
    rows = read_curves(histories, spec | {"chained": []}, "t")
    assert [row["tokens"] for row in rows] == [10, 20, 10, 20]
    assert read_curves(histories, spec, "u") == []


def test_curves_are_of_the_next_token_whatever_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = [
        {"phase": "joint", "tokens": 10, "loss": 0.4, "next_token": 2.0},
        {"phase": "joint", "tokens": 20, "loss": 0.3},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    about = [{"teacher": "t", "arm": "kd", "seed": 1, "step": 1}]
    spec = {"histories": about, "chained": [], "mixed": ["kd"]}
    assert [row["loss"] for row in read_curves([str(path)], spec, "t")] == [2.0]
    # An arm that is trained on the next token alone has it as its loss.
    found = read_curves([str(path)], spec | {"mixed": []}, "t")
    assert [row["loss"] for row in found] == [2.0, 0.3]


def test_losses_that_differ_by_factors_have_a_logarithmic_axis() -> None:
    rows = [row | {"loss": row["loss"] * (1 + 3 * (row["step"] == 2))} for row in curves()]
    figure, _ = training_figure(rows, ["iskd", "best"])
    assert figure.axes[0].get_yscale() == "log"


def test_substitutions_are_marked(drawn: dict[str, Drawn]) -> None:
    figure, frame = drawn["training"]
    marks = {
        float(np.asarray(line.get_xdata(), float)[0])
        for line in figure.axes[0].lines
        if len(np.asarray(line.get_xdata())) == 2 and line.get_linewidth() == 0.7
    }
    assert marks == {0.0, 6.0, 12.0}  # thousands of tokens
    assert frame["seeds"].unique().tolist() == [2]


# --- that it can be read --------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_overlaps_or_is_clipped(drawn: dict[str, Drawn], name: str) -> None:
    figure, _ = drawn[name]
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    boxes += [text.get_window_extent() for text in figure.texts]
    for i, box in enumerate(boxes):
        assert box is not None
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
        assert not any(box.overlaps(other) for other in boxes[:i] if other is not None)


@pytest.mark.parametrize("name", FIGURES)
def test_tick_labels_do_not_run_into_one_another(drawn: dict[str, Drawn], name: str) -> None:
    figure, _ = drawn[name]
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [
                label.get_window_extent()
                for label in axis.get_ticklabels()
                if label.get_text() and label.get_visible()
            ]
            assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize("name", FIGURES)
def test_the_legend_names_arms_in_words(drawn: dict[str, Drawn], name: str) -> None:
    figure, frame = drawn[name]
    labels = [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []
    if name == "order":  # its panels are one arm's each, and say so above
        labels = [axes.get_title() for axes in figure.axes]
    assert not any("_" in label for label in labels)
    arms = set(frame["arm"]) - {"chance", "claimed (paper)"}
    styles = arm_styles(arms)
    assert {styles[arm].label for arm in arms} <= set(labels)
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("name", [n for n in FIGURES if n != "training"])
def test_few_and_many_arms_fit(name: str, count: int) -> None:
    metrics, measurements = make_metrics(arms=some_arms(count), seeds=(1,), steps=4)
    figure, _ = FIGURES[name](tidy(metrics), tidy(measurements))
    test_nothing_overlaps_or_is_clipped({name: (figure, pd.DataFrame())}, name)


@pytest.mark.parametrize("name", FIGURES)
def test_in_grey_the_ink_is_dark_enough(drawn: dict[str, Drawn], name: str) -> None:
    """Every arm's lightest colour still parts from the paper when printed without colours."""
    figure, frame = drawn[name]
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    grey = np.asarray(Image.open(data).convert("L"))
    assert (grey < 200).mean() > 0.005
    for style in arm_styles(set(frame["arm"]) - {"chance", "claimed (paper)"}).values():
        red, green, blue = (int(style.colour[i : i + 2], 16) for i in (1, 3, 5))
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 190


# --- bytes and mistakes ---------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from iskd.paper.figures.canvas import save_figure
from iskd.paper.metrics import read_metrics
from tests.unit.test_other_figures import FIGURES
folder = Path(sys.argv[1])
tables = [read_metrics(folder / name) for name in ("metrics.csv", "measurements.csv")]
for name, make in reversed(FIGURES.items()):
    save_figure(*make(*tables), folder / name)
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.stem in FIGURES
    }


def test_another_process_draws_the_same_bytes(
    tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        for table, name in zip(tables, ("metrics", "measurements"), strict=True):
            write_metrics(table, folder / f"{name}.csv")
    for name, make in FIGURES.items():
        given = [read_metrics(ours / f"{t}.csv") for t in ("metrics", "measurements")]
        save_figure(*make(*given), ours / name)
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", PROGRAM, str(theirs)], cwd=root, check=True)
    assert len(digests(ours)) == 4 * len(FIGURES)
    assert digests(ours) == digests(theirs)
    # Fonts lie in the file as TrueType.
    assert b"/FontFile2" in (ours / "loss.pdf").read_bytes()


@pytest.mark.parametrize("name", [n for n in FIGURES if n != "training"])
def test_an_unknown_teacher_is_reported(
    name: str, tables: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    metrics, measurements = (table.assign(teacher="other") for table in tables)
    with pytest.raises(UserError, match="'gpt2'; there are: other"):
        FIGURES[name](metrics, measurements)


def test_what_was_not_measured_is_reported(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    metrics, measurements = tables
    with pytest.raises(UserError, match="replaced block after block"):
        order_figure(metrics[metrics["metric"] != "replaced_block"], "gpt2")
    bare = metrics[(metrics["arm"] != "teacher") | (metrics["metric"] != "loss")]
    for make in (loss_figure, order_figure):
        with pytest.raises(UserError, match="not measured for the teacher itself"):
            make(bare, "gpt2")
    with pytest.raises(UserError, match="not measured for the teacher itself"):
        pareto_figure(bare, measurements, "gpt2")
    with pytest.raises(UserError, match="answers flipped"):
        flips_figure(metrics, {"wikitext": "word_perplexity"}, "gpt2")
    with pytest.raises(UserError, match="nothing was trained"):
        training_figure([], [])
