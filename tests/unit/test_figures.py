"""The trade-off figure: its numbers, its legibility, and its bytes."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.paper import metrics as metrics_module
from iskd.paper.figures.canvas import save_figure
from iskd.paper.figures.tradeoff import tradeoff_figure
from iskd.paper.metrics import tidy, write_metrics
from iskd.paper.style import TEXT_WIDTH, arm_styles, task_title

HEADLINE = {"cbt_context": "acc", "hellaswag": "acc_norm"}
CHANCE = {"cbt_context": 0.1, "hellaswag": 0.25}
Row = dict[str, Any]


def model_rows(
    arm: str, step: int, reduction: float, scores: tuple[float, float, float], **more: Any
) -> list[Row]:
    model = {
        "study": "toy",
        "teacher": "gpt2",
        "arm": arm,
        "seed": 17,
        "step": step,
        "reduction": reduction,
    }
    tasks = (("cbt_context", "acc"), ("hellaswag", "acc_norm"), ("heldout", "loss"))
    return [
        model
        | {"task": task, "metric": metric, "value": value, "stderr": 0.01, "n": 500}
        | {"low": value - 0.02, "high": value + 0.025}
        | more
        for (task, metric), value in zip(tasks, scores, strict=True)
    ]


def study_rows() -> list[Row]:
    rows = model_rows("teacher", 0, 0.0, (0.8, 0.4, 2.5), seed=None)
    for step in (1, 2, 3):
        kept = 1 - 0.1 * step
        for seed in (17, 18):
            scores = (0.8 * kept + 0.001 * seed, 0.4 * kept, 2.5 + step)
            rows += model_rows("iskd", step, 0.1 * step, scores, seed=seed)
        rows += model_rows("l1", step, 0.12 * step, (0.6 * kept, 0.35 * kept, 3 + step))
        rows += model_rows("teacher_tuned", step, 0.0, (0.82, 0.41, 2.4 - 0.1 * step))
    return rows + model_rows("kd", 1, 0.3, (0.7, 0.35, 3.0))


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return tidy(study_rows())


@pytest.fixture(scope="module")
def drawn(metrics: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    return tradeoff_figure(metrics, HEADLINE, CHANCE, "gpt2")


def only(frame: pd.DataFrame, task: str, arm: str, step: int) -> pd.Series:
    rows = frame[(frame["task"] == task) & (frame["arm"] == arm) & (frame["step"] == step)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_frame_holds_what_is_plotted(drawn: tuple[Figure, pd.DataFrame]) -> None:
    _, frame = drawn
    point = only(frame, "cbt_context", "iskd", 2)
    assert point["score"] == pytest.approx(65.75)
    assert (point["low"], point["high"]) == pytest.approx((65.7, 65.8))
    assert (point["seeds"], point["spread_of"], point["unit"]) == (2, "seeds", "%")
    assert point["reduction_percent"] == pytest.approx(20)
    point = only(frame, "heldout", "l1", 3)
    assert (point["score"], point["low"], point["unit"]) == (6, 5.98, "nats/token")
    levels = frame[frame["arm"] == "chance"]
    assert dict(zip(levels["task"], levels["score"], strict=True)) == {
        "cbt_context": 10,
        "hellaswag": 25,
    }


def test_every_point_is_drawn(drawn: tuple[Figure, pd.DataFrame]) -> None:
    figure, frame = drawn
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "CBT, with context ↑",
        "HellaSwag ↑",
        "Held-out text ↓",
    ]
    assert panels[2].get_ylabel() == "Loss (nats/token)"
    styles = arm_styles(["iskd", "l1", "kd", "teacher_tuned"])
    for axes, (_, part) in zip(panels, frame.groupby("task", sort=False), strict=True):
        for arm, style in styles.items():
            own = part.loc[part["arm"] == arm, ["reduction_percent", "score"]].to_numpy(float)
            lines = [line for line in axes.lines if line.get_marker() == style.marker]
            assert {to_hex(line.get_color()) for line in lines} == {style.colour.lower()}
            seen = np.concatenate([np.asarray(line.get_xydata(), float) for line in lines])
            assert np.allclose(np.sort(seen, axis=0), np.sort(own, axis=0)), arm


def test_nothing_overlaps(drawn: tuple[Figure, pd.DataFrame]) -> None:
    figure, _ = drawn
    figure.draw_without_rendering()
    assert figure.get_figwidth() == TEXT_WIDTH
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
    for i, box in enumerate(boxes):
        assert box is not None
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert not any(box.overlaps(other) for other in boxes[:i] if other is not None)


def test_the_legend_names_each_line_once(drawn: tuple[Figure, pd.DataFrame]) -> None:
    figure, _ = drawn
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Teacher", "Tuned teacher", "ISKD", "L1 pruning", "KD", "Chance"]


def test_many_arms_and_panels_still_fit() -> None:
    rows = study_rows()
    for i in range(8):
        rows += model_rows(f"iskd_variant_number_{i}", 1, 0.1, (0.5, 0.3, 3.0))
    rows += [r | {"task": f"task_{i}"} for r in rows if r["task"] == "cbt_context" for i in (1, 2)]
    headline = HEADLINE | {"task_1": "acc", "task_2": "acc"}
    figure, _ = tradeoff_figure(tidy(rows), headline, CHANCE, "gpt2")
    assert len([axes for axes in figure.axes if axes.get_title()]) == len(figure.axes) == 5
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_known_arms_look_the_same_in_any_company() -> None:
    few, many = arm_styles(["iskd", "x"]), arm_styles(["kd", "x", "teacher", "iskd", "a", "l1"])
    assert few["iskd"] == many["iskd"]
    assert list(many) == ["teacher", "iskd", "l1", "kd", "a", "x"]
    every = arm_styles([*many, "one_shot", "layer_drop", "teacher_tuned", *"bcdefgh"])
    looks = {(style.colour, style.marker, style.dashes) for style in every.values()}
    assert len(looks) == len(every)


def test_readers_see_titles_instead_of_keys() -> None:
    assert arm_styles(["iskd_kl"])["iskd_kl"].label == "ISKD KL"
    assert arm_styles(["random_order"])["random_order"].label == "Random order"
    assert (task_title("arc_easy"), task_title("my_task")) == ("ARC-easy", "my task")


def test_dollar_signs_do_not_begin_a_formula(metrics: pd.DataFrame) -> None:
    odd = metrics.assign(arm=metrics["arm"].replace("kd", "a$b$c_"))
    figure, _ = tradeoff_figure(odd, HEADLINE, CHANCE, "gpt2")
    figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(r"A\$b\$c" in text for text in shown)
    assert not any(is_math_text(text) for text in shown)


def test_a_figure_shows_one_teacher_alone(metrics: pd.DataFrame) -> None:
    other = metrics.assign(teacher="phi-1", value=metrics["value"] / 2)
    both = pd.concat([metrics, other])
    _, one = tradeoff_figure(both, HEADLINE, CHANCE, "gpt2")
    _, two = tradeoff_figure(both, HEADLINE, {}, "phi-1")
    assert one.loc[0, "score"] == 80
    assert two.loc[0, "score"] == 40
    assert "chance" not in set(two["arm"])


def test_missing_errors_and_missing_tasks_are_left_out(metrics: pd.DataFrame) -> None:
    frame = metrics.assign(stderr=math.nan, low=math.nan, high=math.nan)
    frame = frame[(frame["arm"] != "kd") | (frame["task"] == "heldout")]
    _, numbers = tradeoff_figure(frame, HEADLINE, CHANCE, "gpt2")
    assert set(numbers.loc[numbers["arm"] == "kd", "task"]) == {"heldout"}
    assert numbers.loc[numbers["arm"] == "l1", "low"].isna().all()


def test_mistakes_are_reported(metrics: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="'bert'; there are: gpt2"):
        tradeoff_figure(metrics, HEADLINE, CHANCE, "bert")
    with pytest.raises(UserError, match="fraction"):
        tradeoff_figure(metrics, HEADLINE, {"hellaswag": 25}, "gpt2")
    with pytest.raises(UserError, match="teacher itself"):
        tradeoff_figure(metrics[metrics["arm"] != "teacher"], HEADLINE, CHANCE, "gpt2")
    both = pd.concat([metrics, metrics.assign(study="other")])
    with pytest.raises(UserError, match="several studies"):
        tradeoff_figure(both, HEADLINE, CHANCE, "gpt2")
    with pytest.raises(UserError, match="missing columns: n"):
        tradeoff_figure(metrics.drop(columns="n"), HEADLINE, CHANCE, "gpt2")


PROGRAM = """
import sys
from pathlib import Path
from iskd.paper.figures.canvas import save_figure
from iskd.paper.figures.tradeoff import tradeoff_figure
from iskd.paper.metrics import read_metrics
figure = tradeoff_figure(
    read_metrics(Path(sys.argv[1])),
    {"cbt_context": "acc", "hellaswag": "acc_norm"},
    {"cbt_context": 0.1, "hellaswag": 0.25},
    "gpt2",
)
save_figure(*figure, Path(sys.argv[2]) / "tradeoff.v1")
"""


def test_the_bytes_are_the_same_anywhere(
    tmp_path: Path, drawn: tuple[Figure, pd.DataFrame]
) -> None:
    here = tmp_path / "here"
    there = tmp_path / "there" / "deeper"
    here.mkdir()
    there.mkdir(parents=True)
    save_figure(*drawn, here / "tradeoff.v1")
    write_metrics(reversed(study_rows()), there / "metrics.csv")
    # A user's settings in the folder and in the home must not show.
    (there / "matplotlibrc").write_text(
        "axes.facecolor: red\nxtick.direction: in\npdf.fonttype: 3\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "SOURCE_DATE"))}
    env |= {"HOME": str(there), "TZ": "Pacific/Chatham", "PYTHONHASHSEED": "4711", "LC_ALL": "C"}
    env |= {"PYTHONPATH": str(Path(metrics_module.__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "metrics.csv", str(there)], cwd=there, env=env, check=True
    )
    for suffix in ("pdf", "svg", "png", "csv"):
        name = f"tradeoff.v1.{suffix}"
        assert (here / name).read_bytes() == (there / name).read_bytes(), suffix
    pdf = (here / "tradeoff.v1.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"<dc:date>" not in (here / "tradeoff.v1.svg").read_bytes()
