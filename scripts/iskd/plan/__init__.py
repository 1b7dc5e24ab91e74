"""What a study consists of, and the parameters of each of its jobs, derived from its config alone.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

from iskd.config.schema import Study
from iskd.plan.jobs import HELDOUT, StudyJobs
from iskd.plan.models import ModelId, StudyModels
from iskd.plan.recordings import StudyRecordings
from iskd.plan.trainings import StudyTrainings

__all__ = [
    "HELDOUT",
    "ModelId",
    "StudyJobs",
    "StudyModels",
    "StudyPlan",
    "StudyRecordings",
    "StudyTrainings",
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
