"""What a study consists of, and the parameters of each of its jobs, derived from its config alone.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

from collections.abc import Mapping
from pathlib import Path

from iskd.config.schema import Study
from iskd.plan.jobs import HELDOUT, StudyJobs
from iskd.plan.models import ModelId, StudyModels
from iskd.plan.recordings import StudyRecordings
from iskd.plan.reductions import check_reductions, given_folders
from iskd.plan.trainings import StudyTrainings

__all__ = [
    "HELDOUT",
    "ModelId",
    "StudyJobs",
    "StudyModels",
    "StudyPlan",
    "StudyRecordings",
    "StudyTrainings",
    "given_folders",
]


class StudyPlan:
    """A study's models and jobs.

    Args:
        study: the checked config.

    Attributes:
        models: which models there are, what makes them, where they lie.
        trainings: the parameters of the jobs that plan or train.
        recordings: what of the teachers' answers is recorded, and who reads it.
        jobs: the parameters of all other jobs.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.models = StudyModels(study)
        self.trainings = StudyTrainings(study, self.models)
        self.recordings = StudyRecordings(self.models, self.trainings)
        self.jobs = StudyJobs(study, self.models)

    def check_reductions(self, folders: Mapping[str, Path], file: str) -> None:
        """Check that the reductions asked for can be reached, as far as models are at hand.

        Args:
            folders: where given teachers lie, as :func:`given_folders` finds them.
            file: the config's name, for messages.

        Raises:
            UserError: one is out of reach.
        """
        check_reductions(self.study, self.trainings, folders, file)
