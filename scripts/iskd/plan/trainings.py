"""The parameters of the jobs that plan or train: order, sizes, settings, and what else decides."""

import random
from dataclasses import asdict, replace
from typing import Any, get_args

from iskd.config.counts import block_count, step_count
from iskd.config.schema import (
    FITTED,
    BaselineArm,
    Compact,
    HubArm,
    IskdArm,
    KdArm,
    LayerDropArm,
    Objective,
    OneShotArm,
    PretrainedHere,
    Replacing,
    Study,
    TeacherTunedArm,
    TheseusArm,
    Training,
)
from iskd.plan.models import ModelId, StudyModels
from iskd.settings import (
    ChangeKind,
    Initialisation,
    LearningRates,
    ObjectiveSettings,
    RecordingSettings,
    SizeRequest,
    StartSettings,
    TrainingSettings,
)


class StudyTrainings:
    """The parameters of the jobs of a study that plan or train.

    Args:
        study: the checked config.
        models: the study's models.
    """

    def __init__(self, study: Study, models: StudyModels) -> None:
        self.study = study
        self.models = models

    def order(self, model: ModelId) -> list[int] | None:
        """Give the order of replacement in an arm, as long as there are steps; None if measured."""
        settings = self.study.teachers[model.teacher]
        own = self.study.arms[model.arm]
        order = (own.order if isinstance(own, Replacing) else None) or settings.order
        steps = step_count(settings)
        if order == "measured" or self._recipe(model) == "parts":
            return None
        if order == "random":
            blocks = block_count(settings)
            # One order per seed, the same in every arm that draws one.
            return random.Random(f"order:{model.teacher}:{model.seed}").sample(range(blocks), steps)
        return list(order[:steps])

    def _recipe(self, model: ModelId) -> str:
        arm, usual = self.study.arms[model.arm], self.study.teachers[model.teacher].compact
        own = arm.compact if isinstance(arm, Replacing) else None
        return (own or usual).recipe

    def sizes(self, teacher: str, arm: str) -> SizeRequest:
        """Give how large an arm's compact block shall be.

        ``like`` is the teacher's section where the arm's own says neither size nor reduction.
        """
        section = _request(self.study.teachers[teacher].compact)
        settings = self.study.arms[arm]
        own = settings.compact if isinstance(settings, Replacing) else None
        request = section if own is None else _request(own)
        decides = request.heads if request.recipe == "narrow" else request.width
        if own is not None and decides is None and request.reduction is None:
            request = replace(request, like=section)
        like = request.like
        if request.reduction is not None or (like is not None and like.reduction is not None):
            request = replace(request, replaced=self.models.headline(teacher))
        published = isinstance(settings, IskdArm) and settings.as_published
        return replace(request, published=published)

    def _start(self, teacher: str, arm: str) -> StartSettings:
        """Give how an arm's compact blocks start."""
        settings = self.study.arms[arm]
        own = settings.compact if isinstance(settings, Replacing) else None
        compact = own or self.study.teachers[teacher].compact
        kind = compact.initialisation or _USUAL_START[compact.recipe]
        return StartSettings(kind, compact.calibration if kind in FITTED else 0)

    def training(self, teacher: str, arm: str) -> TrainingSettings:
        """Merge an arm's training settings over its teacher's.

        Raises:
            KeyError: nothing is trained in this arm.
        """
        merged = self.study.teachers[teacher].training.model_dump()
        settings = self.study.arms[arm]
        if isinstance(settings, HubArm):
            raise KeyError(arm)
        own = settings.training.model_dump(exclude_none=True)
        rates = own.pop("learning_rate", {})
        merged |= own
        merged["learning_rate"] |= rates
        if merged["learning_rate"]["rest"] == "compact":
            merged["learning_rate"]["rest"] = merged["learning_rate"]["compact"]
        return TrainingSettings.of(Training.model_validate(merged).model_dump())

    def plan(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``plan_substitutions``: the model's arm and seed decide.

        Returns:
            ``order``, blocks in the order of their steps, or None where it is measured; ``steps``,
            how many; ``sizes``, see :meth:`sizes`.
        """
        return {
            "order": self.order(model),
            "steps": step_count(self.study.teachers[model.teacher]),
            "sizes": asdict(self.sizes(model.teacher, model.arm)),
        }

    def _replacing(self, model: ModelId) -> dict[str, Any]:
        arm = self.study.arms[model.arm]
        assert isinstance(arm, Replacing)  # noqa: S101 - only such arms replace blocks
        return {
            # The sizes stand in the plan, which does not trigger a rerun; these decide them.
            "sizes": asdict(self.sizes(model.teacher, model.arm)),
            "start": asdict(self._start(model.teacher, model.arm)),
            "objective": asdict(_objective(arm.objective)),
            "warm_start": arm.warm_start,
            "save_precision": self.study.teachers[model.teacher].save_precision,
        }

    def substitution(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``substitute_block``, the fields of ``StepSettings`` among them.

        Returns:
            Besides those, ``sizes`` of the compact block; ``save_precision``; and ``keep_master``,
            whether the next step needs more than the published weights.
        """
        arm = self.study.arms[model.arm]
        assert isinstance(arm, IskdArm)  # noqa: S101 - the rule makes only these
        order = self.order(model)
        last = model.step == step_count(self.study.teachers[model.teacher])
        return {
            "block": None if order is None else order[model.step - 1],
            "training": self.training(model.teacher, model.arm).as_parameter(),
            "as_published": arm.as_published,
            "validation": self._validation(model),
            # The next step trains on weights that no rounding has touched.
            "keep_master": not last and self._may_be_rounded(model.teacher),
            **self._replacing(model),
        }

    def _validation(self, model: ModelId) -> int:
        """Count the sequences that an arm's order is measured on, which it does not train on."""
        arm = self.study.arms[model.arm]
        return arm.validation if isinstance(arm, IskdArm) and self.order(model) is None else 0

    def _may_be_rounded(self, name: str) -> bool:
        """Say whether published weights may be less precise than those that are trained."""
        teacher = self.study.teachers[name]
        usual = "float32" if isinstance(teacher, PretrainedHere) else None
        return (teacher.save_precision or usual) != "float32"

    def _matched(self, model: ModelId) -> dict[str, Any]:
        """Give a baseline its reference's tokens."""
        reference = self.models.reference(model)
        theirs = self.training(model.teacher, reference.arm)
        own = self.training(model.teacher, model.arm)
        return {
            "training": replace(
                own, epochs=theirs.epochs, sequences=theirs.sequences
            ).as_parameter(),
            "validation": self._validation(reference),
        }

    def at_once(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``substitute_at_once``, the fields of ``AtOnceSettings`` among them.

        Returns:
            Besides those, ``sizes`` of the compact blocks, and ``save_precision``.
        """
        arm, order = self.study.arms[model.arm], self.order(model)
        theseus = arm if isinstance(arm, TheseusArm) else None
        return {
            # Recipe parts finds its blocks by measuring.
            "blocks": None if order is None else order[: model.step],
            "first": theseus.first if theseus else None,
            "curriculum": theseus.curriculum if theseus else None,
            **self._matched(model),
            **self._replacing(model),
        }

    def baseline(self, model: ModelId) -> dict[str, Any]:
        """Parameters of a baseline that replaces no block: same parameters, same tokens.

        Returns:
            The fields of ``TuningSettings``; ``save_precision``; but for the tuned teacher what
            decides the reference's size: ``sizes``, and ``reference_blocks``, which of them it has
            replaced (None for one that it measures); and of one method each: ``student``, its
            ``start`` and ``shape``; ``selection``, which blocks are left out.
        """
        arm = self.study.arms[model.arm]
        assert model.seed is not None  # noqa: S101 - only the teacher has none
        params = {
            **self._matched(model),
            "save_precision": self.study.teachers[model.teacher].save_precision,
            "objective": asdict(ObjectiveSettings()),
        }
        if isinstance(arm, TeacherTunedArm):
            return params
        assert not isinstance(arm, HubArm | IskdArm | OneShotArm | TheseusArm)  # noqa: S101
        # The target size stands in the reference's plan. These decide it, and the plan itself
        # does not trigger a rerun: more steps would change it and leave this size as it is.
        reference = self.models.reference(model)
        order = self.order(reference)
        params |= {
            "objective": asdict(_objective(arm.objective)),
            "sizes": asdict(self.sizes(model.teacher, reference.arm)),
            "reference_blocks": [None] * model.step if order is None else order[: model.step],
        }
        if isinstance(arm, KdArm):
            shape = self.study.teachers[model.teacher].student if arm.start == "scratch" else None
            params["student"] = {
                "start": arm.start,
                "shape": shape.model_dump() if shape is not None else None,
            }
        if isinstance(arm, LayerDropArm):
            # A gap that nothing is done about is no parameter: such arms are not made again.
            keys = {"match", "choose", "calibration"} | ({"gap"} if arm.gap != "none" else set())
            params["selection"] = arm.model_dump(include=keys)
        return params

    def recording(self, model: ModelId) -> RecordingSettings | None:
        """Say what of the teacher's answers a model's training reads; None where it asks itself."""
        arm = self.study.arms[model.arm]
        objective = _objective(getattr(arm, "objective", None) or Objective())
        if objective.teacher_cache == "none":
            return None
        # A baseline takes the sequences of its reference.
        taught = self.models.reference(model) if isinstance(arm, BaselineArm) else model
        sequences = self.training(taught.teacher, taught.arm).sequences
        sampled = objective.teacher_cache == "sampled"
        return RecordingSettings(
            kind=objective.teacher_cache,
            teacher_precision=objective.teacher_precision,
            temperature=objective.temperature if sampled else None,
            draws=objective.draws if sampled else None,
            sequences=sequences,
            # Where steps take the whole corpus, arms that set some of it aside share it too.
            validation=0 if sequences is None else self._validation(taught),
        )

    def pretraining(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``pretrain_teacher``; its seed is a parameter of its own.

        Raises:
            KeyError: the teacher is given.
        """
        settings = self.models.pretrained(teacher)
        given = settings.pretraining.model_dump(exclude={"seed", "learning_rate"})
        rate = settings.pretraining.learning_rate
        training = TrainingSettings(
            **given, optimizer="adamw", learning_rate=LearningRates(compact=rate, rest=rate)
        )
        return {
            "family": settings.family,
            "architecture": settings.architecture.model_dump(),
            "training": training.as_parameter(),
            "save_precision": settings.save_precision,
        }


_USUAL_START: dict[str, Initialisation] = {
    "paper": "paper",
    "bottleneck": "paper",
    "narrow": "teacher",
    "parts": "refit",
}


def _request(compact: Compact) -> SizeRequest:
    given = compact.model_dump(exclude={"initialisation", "calibration"})
    if compact.recipe == "parts":
        given["changes"] = list(compact.changes or get_args(ChangeKind))
        given["choice"] = compact.choice or "measured"
    return SizeRequest.of(given)


def _objective(objective: Objective) -> ObjectiveSettings:
    """Give an objective with the defaults of the keys that its weights make idle."""
    settings = ObjectiveSettings(**objective.model_dump())
    if not settings.kl:
        settings = replace(settings, temperature=1.0)
    if settings.teacher_cache != "sampled":
        settings = replace(settings, draws=ObjectiveSettings().draws)
    return settings if settings.needs_teacher else replace(settings, teacher_precision="float32")
