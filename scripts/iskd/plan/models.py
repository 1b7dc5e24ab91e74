"""Which models a study has: their names, what makes them, where they lie."""

from collections.abc import Iterator
from dataclasses import dataclass

from iskd.config.counts import step_count
from iskd.config.schema import (
    Arm,
    BaselineArm,
    FolderTeacher,
    HubArm,
    HubTeacher,
    IskdArm,
    KdArm,
    L1Arm,
    LayerDropArm,
    OneShotArm,
    PretrainedHere,
    Study,
    TeacherTunedArm,
    TheseusArm,
    TrainedArm,
)
from iskd.evaluation.results import TEACHER_ARM

TEACHER_RULES: dict[type, str] = {
    PretrainedHere: "pretrain_teacher",
    HubTeacher: "download_model",
    FolderTeacher: "import_model",
}
BASELINE_RULES: dict[type, str] = {
    OneShotArm: "substitute_at_once",
    TheseusArm: "substitute_at_once",
    L1Arm: "prune_l1",
    KdArm: "distill_student",
    LayerDropArm: "drop_layers",
    TeacherTunedArm: "tune_teacher",
}


@dataclass(frozen=True)
class ModelId:
    """One model of a study. Step 0 is a model as given: arm ``teacher``, or a reference row."""

    teacher: str
    arm: str
    seed: int | None
    step: int

    @property
    def path(self) -> str:
        """The model's place below the folder of the rule that makes or evaluates it."""
        if self.seed is None:
            return f"{self.teacher}/{self.arm}"
        return f"{self.teacher}/{self.arm}/seed_{self.seed}/step_{self.step:02d}"

    @classmethod
    def parse(cls, path: str) -> "ModelId":
        """Read what ``path`` gave."""
        parts = path.split("/")
        if len(parts) == 2:
            return cls(parts[0], parts[1], None, 0)
        teacher, arm, seed, step = parts
        return cls(teacher, arm, int(seed.removeprefix("seed_")), int(step.removeprefix("step_")))


class StudyModels:
    """The models of a study, derived from its config."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def evaluated(self) -> list[ModelId]:
        """List every model that is evaluated, teachers first."""
        found: list[ModelId] = []
        for teacher in self.study.teachers:
            found.append(self.teacher_model(teacher))
            for name, arm in self.study.arms.items():
                if isinstance(arm, HubArm):
                    found += [ModelId(teacher, name, None, 0)] if arm.teacher == teacher else []
                    continue
                found += [
                    ModelId(teacher, name, seed, step)
                    for seed in self.seeds(arm)
                    for step in self.evaluated_steps(teacher, arm)
                ]
        return found

    def trained(self) -> list[ModelId]:
        """List every model that an arm's training gives, evaluated or not."""
        return [
            ModelId(teacher, name, seed, step)
            for teacher in self.study.teachers
            for name, arm in self.study.arms.items()
            if not isinstance(arm, HubArm)
            for seed in self.seeds(arm)
            for step in self.arm_steps(teacher, arm)
        ]

    def all_trained(self) -> list[ModelId]:
        """List every model that is trained here, teachers included."""
        teachers = self.study.teachers.items()
        here = [name for name, teacher in teachers if isinstance(teacher, PretrainedHere)]
        return [*(self.teacher_model(name) for name in here), *self.trained()]

    def substituted(self) -> list[ModelId]:
        """List the evaluated models that one more block was replaced in."""
        return [model for model in self.evaluated() if self.producer(model) == "substitute_block"]

    def seeds(self, arm: TrainedArm) -> list[int]:
        """List the seeds that an arm is run with, in the study's order."""
        return [seed for seed in self.study.seeds if seed in (arm.seeds or self.study.seeds)]

    def arm_steps(self, teacher: str, arm: Arm) -> list[int]:
        """List the steps at which an arm gives a model."""
        if isinstance(arm, IskdArm):
            return list(range(1, step_count(self.study.teachers[teacher]) + 1))
        if isinstance(arm, HubArm):
            return [0]
        return list(arm.steps or [self.headline(teacher)])

    def evaluated_steps(self, teacher: str, arm: Arm) -> list[int]:
        """List the steps at which an arm's models are evaluated."""
        steps = self.arm_steps(teacher, arm)
        chosen = self.study.evaluation.steps
        if not isinstance(arm, IskdArm) or chosen == "all":
            return steps
        wanted = {self.headline(teacher)} if chosen == "headline" else set(chosen)
        return [step for step in steps if step in wanted]

    def headline(self, teacher: str) -> int:
        """Give the step that the tables report."""
        settings = self.study.teachers[teacher]
        return settings.headline or step_count(settings)

    def producer(self, model: ModelId) -> str:
        """Name the rule that makes a model."""
        if model.arm == TEACHER_ARM:
            settings = self.study.teachers[model.teacher]
            return TEACHER_RULES[type(settings)]
        arm = self.study.arms[model.arm]
        if isinstance(arm, HubArm):
            return "download_reference"
        return "substitute_block" if isinstance(arm, IskdArm) else BASELINE_RULES[type(arm)]

    def place(self, model: ModelId) -> str:
        """Give the model's folder below the study's: the rule that makes it, and its path."""
        maker = self.producer(model)
        if model.seed is not None:
            return f"{maker}/{model.path}"
        return f"{maker}/{model.teacher if model.arm == TEACHER_ARM else model.arm}"

    def teacher_model(self, teacher: str) -> ModelId:
        """Give the teacher as a model: step 0."""
        return ModelId(teacher, TEACHER_ARM, None, 0)

    def previous(self, model: ModelId) -> ModelId:
        """Give the model that a substitution starts from."""
        if model.step == 1:
            return self.teacher_model(model.teacher)
        return ModelId(model.teacher, model.arm, model.seed, model.step - 1)

    def reference(self, model: ModelId) -> ModelId:
        """Give the model whose parameters and tokens a baseline matches.

        Raises:
            KeyError: the arm is no baseline.
        """
        arm = self.study.arms[model.arm]
        if not isinstance(arm, BaselineArm):
            raise KeyError(model.arm)
        name = arm.reference or next(self.iskd_arms())
        return ModelId(model.teacher, name, model.seed, model.step)

    def iskd_arms(self) -> Iterator[str]:
        """Give the names of the arms that substitute blocks."""
        return (name for name, arm in self.study.arms.items() if isinstance(arm, IskdArm))

    def headline_steps(self) -> dict[str, int]:
        """Give the step the tables report, per teacher."""
        return {teacher: self.headline(teacher) for teacher in self.study.teachers}

    def pretrained(self, teacher: str) -> PretrainedHere:
        """Give the section of a teacher that is trained here.

        Raises:
            KeyError: the teacher is given.
        """
        settings = self.study.teachers[teacher]
        if not isinstance(settings, PretrainedHere):
            raise KeyError(teacher)
        return settings
