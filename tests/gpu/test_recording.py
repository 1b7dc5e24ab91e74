"""A teacher's recorded answers, made on a card."""

import copy
from pathlib import Path

import torch

from iskd.models.scratch import fresh_model, scratch_config
from iskd.settings import ObjectiveSettings, RecordingSettings
from iskd.training.objectives import Mixture
from iskd.training.recording import record
from iskd.training.teacher_cache import TeacherCache

SHAPE = {"blocks": 2, "width": 64, "heads": 2, "mlp": None}


def test_recorded_twice_they_are_the_same_and_give_the_loss_of_asking(tmp_path: Path) -> None:
    config = scratch_config(
        "llama", SHAPE, vocabulary=20_000, positions=64, end_token=0, dropout=0.0
    )
    teacher, student = (fresh_model(config, seed).cuda() for seed in (1, 2))
    tokens = torch.randint(20_000, (12, 64), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": tokens[:4].cuda(), "index": torch.arange(4).cuda()}
    objective = ObjectiveSettings(next_token=0.5, kl=0.5)
    asked = Mixture(objective, copy.deepcopy(teacher))(student, batch).item()
    for kind, draws, near in (("exact", None, 1e-4), ("sampled", 100, 0.1)):
        settings = RecordingSettings(
            "exact" if kind == "exact" else "sampled",
            teacher_precision="float32",
            temperature=1.0 if draws else None,
            draws=draws,
            sequences=None,
            validation=0,
        )
        found = []
        for number in range(2):
            out = tmp_path / f"{kind}_{number}"
            out.mkdir()
            record(lambda: teacher, tokens, settings, step=1, seed=1, out=out)
            found.append({file.name: file.read_bytes() for file in out.iterdir()})
        assert found[0] == found[1]
        cache = TeacherCache([tmp_path / f"{kind}_0"], torch.arange(12))
        loss = Mixture(objective, cache=cache)(student, batch)
        loss.backward()
        assert abs(loss.item() - asked) < near * asked
