"""What a study consists of: its models, their places, and what each job is asked.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from iskd.config.load import RESERVED_ARM, step_count
from iskd.config.schema import (
    Arm,
    BaselineArm,
    FileTask,
    HubTask,
    HubTeacher,
    IskdArm,
    KdArm,
    L1Arm,
    PretrainedHere,
    Study,
    Teacher,
    TeacherTunedArm,
    Training,
)
from iskd.evaluation.kinds import KINDS

BASELINE_RULES: dict[type, str] = {
    L1Arm: "prune_l1",
    KdArm: "distill_student",
    TeacherTunedArm: "tune_teacher",
}


@dataclass(frozen=True)
class ModelId:
    """One model of a study. Step 0 of arm ``teacher`` is the teacher as given."""

    teacher: str
    arm: str
    seed: int | None
    step: int

    @property
    def path(self) -> str:
        """The model's place below the folder of the rule that makes or evaluates it."""
        if self.seed is None:
            return f"{self.teacher}/{RESERVED_ARM}"
        return f"{self.teacher}/{self.arm}/seed_{self.seed}/step_{self.step:02d}"

    @classmethod
    def parse(cls, path: str) -> "ModelId":
        """Read what ``path`` gave."""
        parts = path.split("/")
        if len(parts) == 2:
            return cls(parts[0], RESERVED_ARM, None, 0)
        teacher, arm, seed, step = parts
        return cls(teacher, arm, int(seed.removeprefix("seed_")), int(step.removeprefix("step_")))


class StudyPlan:
    """The jobs of a study, derived from its config."""

    def __init__(self, study: Study) -> None:
        self.study = study

    # --- models -----------------------------------------------------------------------------

    def models(self) -> list[ModelId]:
        """List every model that is evaluated, teachers first."""
        found: list[ModelId] = []
        for teacher in self.study.teachers:
            found.append(self.teacher_model(teacher))
            for name, arm in self.study.arms.items():
                found += [
                    ModelId(teacher, name, seed, step)
                    for seed in self.study.seeds
                    for step in self.arm_steps(teacher, arm)
                ]
        return found

    def arm_steps(self, teacher: str, arm: Arm) -> list[int]:
        """List the steps at which an arm gives a model."""
        if isinstance(arm, IskdArm):
            return list(range(1, step_count(self.study.teachers[teacher]) + 1))
        return list(arm.steps or [self.headline(teacher)])

    def headline(self, teacher: str) -> int:
        """Give the step that the tables report."""
        settings = self.study.teachers[teacher]
        return settings.headline or step_count(settings)

    def producer(self, model: ModelId) -> str:
        """Name the rule that makes a model."""
        if model.seed is None:
            settings = self.study.teachers[model.teacher]
            return "download_model" if isinstance(settings, HubTeacher) else "pretrain_teacher"
        arm = self.study.arms[model.arm]
        return "substitute_block" if isinstance(arm, IskdArm) else BASELINE_RULES[type(arm)]

    def place(self, model: ModelId) -> str:
        """Give the model's folder below the study's: the rule that makes it, and its path."""
        maker = self.producer(model)
        return f"{maker}/{model.teacher if model.seed is None else model.path}"

    def teacher_model(self, teacher: str) -> ModelId:
        """Give the teacher as a model: step 0."""
        return ModelId(teacher, RESERVED_ARM, None, 0)

    def previous(self, model: ModelId) -> ModelId:
        """Give the model that a substitution starts from."""
        if model.step == 1:
            return self.teacher_model(model.teacher)
        return ModelId(model.teacher, model.arm, model.seed, model.step - 1)

    def reference(self, model: ModelId) -> ModelId:
        """Give the model whose parameters and tokens a baseline matches."""
        arm = self.study.arms[model.arm]
        if not isinstance(arm, BaselineArm):
            raise KeyError(model.arm)
        name = arm.reference or next(self.iskd_arms())
        return ModelId(model.teacher, name, model.seed, model.step)

    def iskd_arms(self) -> Iterator[str]:
        """Give the names of the arms that substitute blocks."""
        return (name for name, arm in self.study.arms.items() if isinstance(arm, IskdArm))

    # --- what each job is asked -------------------------------------------------------------

    def order(self, teacher: str, seed: int) -> list[int]:
        """Give the order of replacement for one seed, as long as there are steps."""
        settings = self.study.teachers[teacher]
        steps = step_count(settings)
        if settings.order == "random":
            blocks = (
                settings.blocks
                if isinstance(settings, HubTeacher)
                else settings.architecture.blocks
            )
            return random.Random(f"order:{teacher}:{seed}").sample(range(blocks), steps)
        return list(settings.order[:steps])

    def sizes(self, teacher: str) -> dict[str, Any]:
        """Give the compact block's sizes; its positions are the teacher's."""
        compact = self.study.teachers[teacher].compact
        return compact.model_dump(exclude={"recipe", "initialisation"})

    def training(self, teacher: str, arm: str) -> dict[str, Any]:
        """Merge an arm's training settings over its teacher's."""
        merged = self.study.teachers[teacher].training.model_dump()
        own = self.study.arms[arm].training.model_dump(exclude_none=True)
        rates = own.pop("learning_rate", {})
        merged |= own
        merged["learning_rate"] |= rates
        return Training.model_validate(merged).model_dump()

    def plan_spec(self, teacher: str, seed: int) -> dict[str, Any]:
        """Parameters of ``plan_substitutions``."""
        return {"sizes": self.sizes(teacher), "order": self.order(teacher, seed)}

    def substitution_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``substitute_block``."""
        assert model.seed is not None  # noqa: S101 - only the teacher has none
        return {
            "block": self.order(model.teacher, model.seed)[model.step - 1],
            "sizes": self.sizes(model.teacher),
            "initialisation": self.study.teachers[model.teacher].compact.initialisation,
            "training": self.training(model.teacher, model.arm),
        }

    def baseline_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of a baseline: same parameters, same tokens as its reference."""
        assert model.seed is not None  # noqa: S101 - only the teacher has none
        arm = self.study.arms[model.arm]
        reference = self.reference(model)
        matched = self.training(model.teacher, reference.arm)
        tokens = {key: matched[key] for key in ("epochs", "sequences")}
        spec: dict[str, Any] = {"training": self.training(model.teacher, model.arm) | tokens}
        if isinstance(arm, L1Arm):
            # The target size stands in the plan. These decide it, and the plan itself does not
            # trigger a rerun: more steps would change it and leave this size as it is.
            spec["replaced"] = self.order(model.teacher, model.seed)[: model.step]
            spec["sizes"] = self.sizes(model.teacher)
        if isinstance(arm, KdArm):
            student = self.study.teachers[model.teacher].student
            assert student is not None  # noqa: S101 - checked when the config was read
            spec |= {
                "student": student.model_dump(),
                "temperature": arm.temperature,
                "weight": arm.weight,
            }
        return spec

    def pretraining_spec(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``pretrain_teacher``."""
        settings = self._pretrained(teacher)
        return {
            "family": settings.family,
            "architecture": settings.architecture.model_dump(),
            "pretraining": settings.pretraining.model_dump(),
        }

    def _pretrained(self, teacher: str) -> PretrainedHere:
        settings: Teacher = self.study.teachers[teacher]
        if not isinstance(settings, PretrainedHere):
            raise KeyError(teacher)
        return settings

    # --- tasks ------------------------------------------------------------------------------

    def kind(self, task: str) -> str:
        """Give the kind of a task: how its rows are asked and scored."""
        return self.study.tasks[task].kind or task

    def rows_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``prepare_task``."""
        settings = self.study.tasks[task]
        spec = {
            "kind": self.kind(task),
            "source": settings.source,
            "rows": settings.rows,
            "seed": settings.seed,
        }
        if isinstance(settings, FileTask):
            spec["file"] = settings.file
        return spec

    def hub_tasks(self) -> list[str]:
        """List the tasks whose rows are fetched from the hub."""
        return [name for name, task in self.study.tasks.items() if isinstance(task, HubTask)]

    def hub_teachers(self) -> list[str]:
        """List the teachers that are fetched from the hub."""
        return [n for n, teacher in self.study.teachers.items() if isinstance(teacher, HubTeacher)]

    # --- evaluation and paper ---------------------------------------------------------------

    def tokenizer_spec(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``train_tokenizer``."""
        shape = self._pretrained(teacher).architecture
        return {"vocabulary": shape.vocabulary, "positions": shape.positions}

    def evaluation_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``evaluate``."""
        return {"kind": self.kind(task), **self.study.evaluation.model_dump()}

    def collection_spec(self) -> dict[str, Any]:
        """Parameters of ``collect_metrics``: what each collected file is about, in their order."""
        models = [asdict(model) for model in self.models()]
        return {
            "study": self.study.study,
            "evaluations": [{**m, "task": task} for m in models for task in self.study.tasks],
            "heldout": models,
        }

    def reporting_spec(self) -> dict[str, Any]:
        """Parameters of figures and tables: the metric to quote per task, and chance."""
        kinds = {task: KINDS[self.kind(task)] for task in self.study.tasks}
        return {
            "study": self.study.study,
            "headline": {task: kind.headline for task, kind in kinds.items()},
            "chance": {task: kind.chance for task, kind in kinds.items()},
        }

    def headline_steps(self) -> dict[str, int]:
        """Give the step the tables report, per teacher."""
        return {teacher: self.headline(teacher) for teacher in self.study.teachers}
