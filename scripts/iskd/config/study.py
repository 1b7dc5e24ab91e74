"""What a study consists of: its models, their places, and what each job is asked.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from iskd.config.checks import RESERVED_ARM, block_count, step_count
from iskd.config.schema import (
    FITTED,
    Arm,
    BaselineArm,
    Compact,
    FileTask,
    HubArm,
    HubTask,
    HubTeacher,
    IskdArm,
    KdArm,
    L1Arm,
    LayerDropArm,
    Objective,
    OneShotArm,
    PretrainedHere,
    Replacing,
    Study,
    Teacher,
    TeacherTunedArm,
    TheseusArm,
    Training,
)
from iskd.evaluation.kinds import KINDS

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
                if isinstance(arm, HubArm):
                    found += [ModelId(teacher, name, None, 0)] if arm.teacher == teacher else []
                    continue
                found += [
                    ModelId(teacher, name, seed, step)
                    for seed in self.study.seeds
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
            for seed in self.study.seeds
            for step in self.arm_steps(teacher, arm)
        ]

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
        if isinstance(arm, IskdArm) and self.study.evaluation.steps == "headline":
            return [step for step in steps if step == self.headline(teacher)]
        return steps

    def headline(self, teacher: str) -> int:
        """Give the step that the tables report."""
        settings = self.study.teachers[teacher]
        return settings.headline or step_count(settings)

    def producer(self, model: ModelId) -> str:
        """Name the rule that makes a model."""
        if model.arm == RESERVED_ARM:
            settings = self.study.teachers[model.teacher]
            return "download_model" if isinstance(settings, HubTeacher) else "pretrain_teacher"
        arm = self.study.arms[model.arm]
        if isinstance(arm, HubArm):
            return "download_reference"
        return "substitute_block" if isinstance(arm, IskdArm) else BASELINE_RULES[type(arm)]

    def place(self, model: ModelId) -> str:
        """Give the model's folder below the study's: the rule that makes it, and its path."""
        maker = self.producer(model)
        if model.seed is not None:
            return f"{maker}/{model.path}"
        return f"{maker}/{model.teacher if model.arm == RESERVED_ARM else model.arm}"

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

    def order(self, model: ModelId) -> list[int] | None:
        """Give the order of replacement in an arm, as long as there are steps; None if measured."""
        settings = self.study.teachers[model.teacher]
        own = self.study.arms[model.arm]
        order = (own.order if isinstance(own, Replacing) else None) or settings.order
        steps = step_count(settings)
        if order == "measured":
            return None
        if order == "random":
            blocks = block_count(settings)
            # One order per seed, the same in every arm that draws one.
            return random.Random(f"order:{model.teacher}:{model.seed}").sample(range(blocks), steps)
        return list(order[:steps])

    def request(self, teacher: str, arm: str) -> dict[str, Any]:
        """Give what an arm's compact block shall be like; the plan settles the sizes."""
        section = self.study.teachers[teacher].compact
        settings = self.study.arms[arm]
        own = settings.compact if isinstance(settings, Replacing) else None
        asked = self._asked(own or section)
        decides = "heads" if asked["recipe"] == "narrow" else "width"
        if own is not None and asked[decides] is None and asked["reduction"] is None:
            asked["like"] = self._asked(section)
        if isinstance(settings, IskdArm) and settings.as_published:
            asked["published"] = True
        return asked

    def _asked(self, compact: Compact) -> dict[str, Any]:
        return compact.model_dump(exclude={"initialisation", "calibration"})

    def _start(self, teacher: str, arm: str) -> dict[str, Any]:
        """Give how an arm's new blocks start."""
        settings = self.study.arms[arm]
        own = settings.compact if isinstance(settings, Replacing) else None
        compact = own or self.study.teachers[teacher].compact
        usual = "teacher" if compact.recipe == "narrow" else "paper"
        kind = compact.initialisation or usual
        start: dict[str, Any] = {"initialisation": kind}
        if kind in FITTED:
            start["calibration"] = compact.calibration
        return start

    def training(self, teacher: str, arm: str) -> dict[str, Any]:
        """Merge an arm's training settings over its teacher's."""
        merged = self.study.teachers[teacher].training.model_dump()
        settings = self.study.arms[arm]
        if isinstance(settings, HubArm):
            raise KeyError(arm)  # nothing is trained
        own = settings.training.model_dump(exclude_none=True)
        rates = own.pop("learning_rate", {})
        merged |= own
        merged["learning_rate"] |= rates
        return Training.model_validate(merged).model_dump()

    def plan_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``plan_substitutions``: the model's arm and seed decide."""
        return {
            "request": self.request(model.teacher, model.arm),
            "order": self.order(model),
            "steps": step_count(self.study.teachers[model.teacher]),
            "headline": self.headline(model.teacher),
        }

    def needs_teacher(self, model: ModelId) -> bool:
        """Say whether a substitution listens to the teacher beside the model it changes."""
        arm = self.study.arms[model.arm]
        if not isinstance(arm, Replacing):
            return False
        listens = arm.objective.kl or arm.objective.hidden or arm.warm_start
        return bool(listens) or "calibration" in self._start(model.teacher, model.arm)

    def _objective(self, objective: Objective) -> dict[str, Any]:
        """Give an objective without the keys that its weights make idle."""
        spec = objective.model_dump()
        if not objective.kl:
            del spec["temperature"]
        if not (objective.kl or objective.hidden):
            del spec["teacher_precision"]
        return spec

    def _replacing_spec(self, model: ModelId) -> dict[str, Any]:
        arm = self.study.arms[model.arm]
        assert isinstance(arm, Replacing)  # noqa: S101 - only such arms replace blocks
        return {
            # The sizes stand in the plan, which does not trigger a rerun; these decide them.
            "request": self.request(model.teacher, model.arm),
            **self._start(model.teacher, model.arm),
            "objective": self._objective(arm.objective),
            "warm_start": arm.warm_start,
        }

    def substitution_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``substitute_block``."""
        arm = self.study.arms[model.arm]
        assert isinstance(arm, IskdArm)  # noqa: S101 - the rule makes only these
        order = self.order(model)
        spec = {
            "block": None if order is None else order[model.step - 1],
            "training": self.training(model.teacher, model.arm),
            "as_published": arm.as_published,
            **self._replacing_spec(model),
        }
        if order is None:
            spec["validation"] = arm.validation
        return self._with_planned_steps(spec, model)

    def _with_planned_steps(self, spec: dict[str, Any], model: ModelId) -> dict[str, Any]:
        """Add how many blocks go in all, where the sizes depend on it."""
        request = spec["request"]
        if request["reduction"] is not None or request.get("like", {}).get("reduction") is not None:
            spec["planned"] = self.headline(model.teacher)
        return spec

    def baseline_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of a baseline: same parameters, same tokens as its reference."""
        assert model.seed is not None  # noqa: S101 - only the teacher has none
        arm = self.study.arms[model.arm]
        reference = self.reference(model)
        matched = self.training(model.teacher, reference.arm)
        tokens = {key: matched[key] for key in ("epochs", "sequences")}
        spec: dict[str, Any] = {"training": self.training(model.teacher, model.arm) | tokens}
        if self.order(reference) is None:
            # The sequences that the reference's order is measured on, it does not train on.
            spec["validation"] = self.study.arms[reference.arm].validation  # type: ignore[union-attr]
        if isinstance(arm, OneShotArm | TheseusArm):
            order = self.order(model)
            assert order is not None  # noqa: S101 - checked when the config was read
            spec |= {"replaced": order[: model.step], **self._replacing_spec(model)}
            if isinstance(arm, TheseusArm):
                spec |= {"first": arm.first, "curriculum": arm.curriculum}
            return self._with_planned_steps(spec, model)
        if not isinstance(arm, TeacherTunedArm):
            # The target size stands in the reference's plan. These decide it, and the plan itself
            # does not trigger a rerun: more steps would change it and leave this size as it is.
            order = self.order(reference)
            spec["replaced"] = [None] * model.step if order is None else order[: model.step]
            spec["request"] = self.request(model.teacher, reference.arm)
            spec["objective"] = self._objective(arm.objective)  # type: ignore[union-attr]
            self._with_planned_steps(spec, model)
        if isinstance(arm, KdArm):
            spec["start"] = arm.start
            student = self.study.teachers[model.teacher].student
            spec["student"] = (
                student.model_dump() if student is not None and arm.start == "scratch" else None
            )
        if isinstance(arm, LayerDropArm):
            spec |= arm.model_dump(include={"match", "choose", "calibration"})
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

    def hub_arms(self) -> list[str]:
        """List the arms that are finished models of the hub."""
        return [name for name, arm in self.study.arms.items() if isinstance(arm, HubArm)]

    # --- evaluation and paper ---------------------------------------------------------------

    def tokenizer_spec(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``train_tokenizer``."""
        shape = self._pretrained(teacher).architecture
        return {"vocabulary": shape.vocabulary, "positions": shape.positions}

    def evaluation_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``evaluate``."""
        return {"kind": self.kind(task), **self.heldout_spec()}

    def heldout_spec(self) -> dict[str, Any]:
        """Parameters of ``evaluate_heldout``."""
        return self.study.evaluation.model_dump(exclude={"steps"})

    def collection_spec(self) -> dict[str, Any]:
        """Parameters of ``collect_metrics``: what each collected file is about, in their order."""
        models = [asdict(model) for model in self.models()]
        return {
            "study": self.study.study,
            "evaluations": [{**m, "task": task} for m in models for task in self.study.tasks],
            "heldout": models,
            "histories": [asdict(model) for model in self.trained()],
            "chained": list(self.iskd_arms()),
        }

    def reporting_spec(self) -> dict[str, Any]:
        """Parameters of figures and tables: the metric to quote per task, and chance."""
        kinds = {task: KINDS[self.kind(task)] for task in self.study.tasks}
        return {
            "study": self.study.study,
            "headline": {task: kind.headline for task, kind in kinds.items()},
            "chance": {task: kind.chance for task, kind in kinds.items()},
        }

    def ablation_spec(self) -> dict[str, Any]:
        """Parameters of ``table_ablation``: the first iskd arm's gap is the measure."""
        return {
            **self.reporting_spec(),
            "headline_step": self.headline_steps(),
            "baseline": next(self.iskd_arms(), None),
        }

    def headline_steps(self) -> dict[str, int]:
        """Give the step the tables report, per teacher."""
        return {teacher: self.headline(teacher) for teacher in self.study.teachers}
