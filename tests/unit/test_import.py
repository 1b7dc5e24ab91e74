"""Importing the package: what it costs, and what it makes known to transformers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.conftest import MakeModel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run_fresh(program: str, *arguments: str) -> str:
    """Run a program in a new interpreter and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = ["torch", "transformers", "datasets", "lm_eval", "matplotlib", "numpy", "snakemake"]
LIGHT = [
    "iskd",
    "iskd.config",
    "iskd.runtime.job",
    "iskd.provenance.fingerprint",
    "iskd.data.texts",
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_snakemake_imports_at_its_start_is_light(module: str) -> None:
    program = f"import {module}, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_fresh(program) == "[]"


@pytest.mark.parametrize("imports", ["import iskd, transformers", "import transformers, iskd"])
def test_a_fresh_process_reads_compressed_models_whatever_it_imports_first(
    imports: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    import torch

    from iskd.models import CompactSizes, NarrowSizes

    sizes = CompactSizes(width=8, heads=1, blocks=2, mlp=12, positions=48)
    for family in ("gpt2", "phi"):
        folder = tmp_path / family
        model = tiny_model(family, compact={1: sizes}, narrow={2: NarrowSizes(3, 17)})
        model.save_pretrained(folder)
        with torch.no_grad():
            torch.save(model(torch.arange(1, 20)[None]).logits, folder / "logits.pt")
    program = (
        f"import sys\n{imports}\nimport torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.set_num_threads(1)\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "    with torch.no_grad():\n"
        "        logits = model(torch.arange(1, 20)[None]).logits\n"
        "    same = torch.equal(logits, torch.load(folder + '/logits.pt'))\n"
        "    print(type(model).__module__, same)\n"
    )
    printed = run_fresh(program, str(tmp_path / "gpt2"), str(tmp_path / "phi"))
    assert printed.splitlines() == [
        "iskd.models.modeling.iskd_gpt2 True",
        "iskd.models.modeling.iskd_phi True",
    ]
