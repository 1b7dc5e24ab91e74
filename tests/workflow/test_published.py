"""A finished study's picture and numbers go into the documentation by one command."""

import json
import shutil
from pathlib import Path

from tools.published import publish

from iskd.paper.metrics import read_metrics

from .conftest import ROOT, Clone

TABLE = """
<!-- table: {run: tiny, columns: [model/parameters, heldout/loss], arms: {teacher: Teacher}} -->

not yet

Below.
"""


def test_a_finished_study_is_quoted_in_the_documentation(finished: Clone, tmp_path: Path) -> None:
    study = finished.folder / "results/tiny"
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"# Readme\n{TABLE}", encoding="utf-8")
    publish(study, tmp_path)
    kept = tmp_path / "docs/runs/tiny.csv"
    rows = kept.read_text(encoding="utf-8").splitlines()
    assert set(rows) < set((study / "metrics.csv").read_text(encoding="utf-8").splitlines())
    metrics = read_metrics(kept)
    teacher = metrics[metrics["arm"] == "teacher"].set_index(["task", "metric"])["value"]
    size = f"{teacher['model', 'parameters'] / 1e6:.1f} M"
    loss = f"{teacher['heldout', 'loss']:.3f} ±"
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"| Teacher | {size} | {loss}" in page
    assert "not yet" not in page
    assert page.endswith("|\n\nBelow.\n")
    facts = json.loads((tmp_path / "docs/runs/tiny.json").read_text(encoding="utf-8"))
    picture = facts["pictures"]["figure_tradeoff_tiny.png"]
    # The picture alone leads back to its statement.
    alone = shutil.copy(tmp_path / "docs/figure_tradeoff_tiny.png", tmp_path / "alone.png")
    assert picture["request"].encode() in Path(alone).read_bytes()
    assert (tmp_path / "docs/figure_tradeoff_tiny.png").read_bytes() == (
        study / "paper/figure_tradeoff_toy.png"
    ).read_bytes()
    assert not (ROOT / "docs/runs/tiny.csv").exists()
