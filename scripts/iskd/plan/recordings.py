"""What a study records of its teachers' answers: one artifact for each step, for all arms.

A step's artifact has what the sequences of that step add to those of the steps before. So a study
that gets more steps, arms or seeds records what is new and nothing again.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from iskd.plan.models import ModelId, StudyModels
from iskd.plan.trainings import StudyTrainings
from iskd.settings import RecordingSettings


@dataclass(frozen=True)
class Recording:
    """The answers of a teacher that one step adds."""

    teacher: str
    settings: RecordingSettings
    seed: int
    step: int

    @property
    def place(self) -> str:
        """Its folder below the study's."""
        run = f"{self.teacher}/{self.settings.name}/seed_{self.seed}"
        return f"record_teacher/{run}/step_{self.step:02d}"


class StudyRecordings:
    """Which answers a study's trainings read.

    Args:
        models: the study's models.
        trainings: their trainings.
    """

    def __init__(self, models: StudyModels, trainings: StudyTrainings) -> None:
        self.models = models
        self.trainings = trainings

    def read_by(self, model: ModelId) -> list[Recording]:
        """List what a model's training reads, by step; nothing where it has its teacher at hand."""
        settings = self.trainings.recording(model)
        if settings is None or model.seed is None:
            return []
        # The first step has it all where each takes the whole corpus.
        last = 1 if settings.sequences is None else model.step
        return [Recording(model.teacher, settings, model.seed, step) for step in range(1, last + 1)]

    def before(self, place: str) -> list[Recording]:
        """List what the steps before add, whose sequences are not recorded again.

        Args:
            place: of a recording.
        """
        own = self._by_place[place]
        return [Recording(own.teacher, own.settings, own.seed, step) for step in range(1, own.step)]

    def parameters(self, place: str) -> dict[str, Any]:
        """Parameters of ``record_teacher``: the fields of ``RecordingSettings``.

        Args:
            place: of a recording.
        """
        return asdict(self._by_place[place].settings)

    @cached_property
    def _by_place(self) -> dict[str, Recording]:
        read = (self.read_by(model) for model in self.models.trained())
        return {recording.place: recording for part in read for recording in part}
