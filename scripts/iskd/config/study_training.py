"""What each job that plans or trains is asked: order, sizes, settings, and what else decides."""

import random
from typing import Any

from iskd.config.counts import block_count, step_count
from iskd.config.schema import (
    FITTED,
    Compact,
    HubArm,
    IskdArm,
    KdArm,
    LayerDropArm,
    Objective,
    OneShotArm,
    PretrainedHere,
    Replacing,
    Teacher,
    TeacherTunedArm,
    TheseusArm,
    Training,
)
from iskd.config.study_models import ModelId, StudyModels


class StudyTrainings(StudyModels):
    """What the trainings of a study are asked."""

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
        """Give what an arm's compact block shall be like; the plan settles the sizes.

        Returns:
            The keys of the section ``compact`` that decide sizes; ``like``, the teacher's, where
            the arm's own says neither size nor reduction; ``published`` where defects are kept.
        """
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
        return Training.model_validate(merged).model_dump()

    def plan_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of ``plan_substitutions``: the model's arm and seed decide.

        Returns:
            ``request``, see :meth:`request`; ``order``, blocks in the order of their steps, or None
            where it is measured; ``steps``, how many; ``headline``, the step that tables report.
        """
        return {
            "request": self.request(model.teacher, model.arm),
            "order": self.order(model),
            "steps": step_count(self.study.teachers[model.teacher]),
            "headline": self.headline(model.teacher),
        }

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
        """Parameters of ``substitute_block``.

        Returns:
            ``block``: its index, None where the order is measured; ``training``: the section of
            that name, the arm's over the teacher's; ``as_published``; ``request``: what the new
            block shall be like, see :meth:`request`; ``initialisation``, and ``calibration`` where
            the start is fitted; ``objective``; ``warm_start``; ``validation``, the sequences that a
            measured order is measured on; ``planned``, how many blocks are gone at the
            step that tables report, where the sizes follow from a reduction;
            ``save_precision``; and ``continued`` where the next step needs more than the published
            weights.
        """
        arm = self.study.arms[model.arm]
        assert isinstance(arm, IskdArm)  # noqa: S101 - the rule makes only these
        order = self.order(model)
        spec = {
            "block": None if order is None else order[model.step - 1],
            "training": self.training(model.teacher, model.arm),
            "as_published": arm.as_published,
            **self._replacing_spec(model),
            **self._saving_spec(model.teacher),
        }
        if order is None:
            spec["validation"] = arm.validation
        teacher = self.study.teachers[model.teacher]
        if self._may_be_rounded(teacher) and model.step < step_count(teacher):
            # The next step trains on weights that no rounding has touched.
            spec["continued"] = True
        return self._with_planned_steps(spec, model)

    def _saving_spec(self, teacher: str) -> dict[str, Any]:
        """Give the number format that models are published in; None for the teacher's own."""
        return {"save_precision": self.study.teachers[teacher].save_precision}

    @staticmethod
    def _may_be_rounded(teacher: Teacher) -> bool:
        """Say whether published weights may be less precise than those that are trained."""
        usual = "float32" if isinstance(teacher, PretrainedHere) else None
        return (teacher.save_precision or usual) != "float32"

    def _with_planned_steps(self, spec: dict[str, Any], model: ModelId) -> dict[str, Any]:
        """Add how many blocks are gone at the headline step, where the sizes depend on it."""
        request = spec["request"]
        if request["reduction"] is not None or request.get("like", {}).get("reduction") is not None:
            spec["planned"] = self.headline(model.teacher)
        return spec

    def baseline_spec(self, model: ModelId) -> dict[str, Any]:
        """Parameters of a baseline: same parameters, same tokens as its reference.

        Returns:
            ``training``, with the reference's epochs and sequences; ``save_precision``;
            ``validation``, sequences that are not trained on, where the reference's order is
            measured. Where blocks are replaced: ``replaced``, which, and what
            :meth:`substitution_spec` has of the new ones; theseus also ``first`` and
            ``curriculum``. Otherwise, but for the tuned teacher, what decides
            the reference's size: ``replaced``, ``request``, ``planned``; ``objective``; and, each
            of one method: ``start`` and ``student``; ``match``, ``choose`` and ``calibration``.
        """
        assert model.seed is not None  # noqa: S101 - only the teacher has none
        arm = self.study.arms[model.arm]
        reference = self.reference(model)
        matched = self.training(model.teacher, reference.arm)
        tokens = {key: matched[key] for key in ("epochs", "sequences")}
        spec: dict[str, Any] = {
            "training": self.training(model.teacher, model.arm) | tokens,
            **self._saving_spec(model.teacher),
        }
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
            **self._saving_spec(teacher),
        }

    def _pretrained(self, teacher: str) -> PretrainedHere:
        settings: Teacher = self.study.teachers[teacher]
        if not isinstance(settings, PretrainedHere):
            raise KeyError(teacher)
        return settings
