"""Rules about the arms of a study."""

from iskd.config.block_rules import BlockRules
from iskd.config.counts import block_count, step_count
from iskd.config.schema import (
    Arm,
    BaselineArm,
    GivenTeacher,
    HubArm,
    IskdArm,
    KdArm,
    LayerDropArm,
    Objective,
    OneShotArm,
    Replacing,
    Teacher,
    TheseusArm,
    TrainedArm,
)
from iskd.evaluation.results import TEACHER_ARM

PUBLISHED_FAMILIES = ("gpt2", "phi")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _recipe(arm: Replacing, teacher: Teacher) -> str:
    return (arm.compact or teacher.compact).recipe


class ArmRules(BlockRules):
    """Rules about arms."""

    def check(self, name: str) -> None:
        """Check one arm."""
        arm = self.study.arms[name]
        if name == TEACHER_ARM:
            self.fail(f"arms.{name}", "this name stands for the teacher itself; choose another")
        objective = getattr(arm, "objective", None)
        if objective is not None:
            self._objective(f"arms.{name}.objective", objective, arm)
        if isinstance(arm, HubArm):
            self._reference_row(name, arm)
        if isinstance(arm, TrainedArm):
            self._seeds(f"arms.{name}.seeds", arm.seeds or self.study.seeds)
        if isinstance(arm, IskdArm | OneShotArm | TheseusArm):
            self._replacing(name, arm)
        if isinstance(arm, BaselineArm):
            self._baseline(name, arm)

    def _seeds(self, key: str, own: list[int]) -> None:
        """Check that an arm's seeds are the study's, and that the first one is there."""
        seeds = self.study.seeds
        if len(set(own)) != len(own):
            self.fail(key, "the same seed stands here twice; each may stand once")
        for seed in own:
            if seed not in seeds:
                self.fail(
                    key, f"{seed} is none of the study's seeds ({_listed(seeds)}); add it there"
                )
        if seeds[0] not in own:
            self.fail(
                key,
                f"the study's first seed, {seeds[0]}, is missing, which speed and generation are "
                f"measured with; add it",
            )

    def _objective(self, key: str, objective: Objective, arm: Arm) -> None:
        if not objective.next_token + objective.kl + objective.hidden:
            self.fail(key, "every weight is 0, so nothing is learnt; raise one")
        self._cache(f"{key}.teacher_cache", objective)
        if isinstance(arm, KdArm) and not objective.kl:
            self.fail(f"{key}.kl", "a student that is distilled needs it; give it a weight")
        if isinstance(arm, KdArm | LayerDropArm) and objective.hidden:
            self.fail(
                f"{key}.hidden",
                f"method {arm.method} has fewer blocks than the teacher, whose states after each "
                f"are compared; remove this key",
            )

    def _cache(self, key: str, objective: Objective) -> None:
        if objective.teacher_cache == "none":
            return
        if objective.hidden:
            self.fail(
                key,
                "the term hidden needs the teacher itself and nothing of it is recorded; remove "
                "this key, or set hidden to 0",
            )
        if not objective.kl:
            self.fail(
                key,
                "without the term kl the teacher says nothing that could be recorded; remove this "
                "key, or give kl a weight",
            )

    def _reference_row(self, name: str, arm: HubArm) -> None:
        key = f"arms.{name}.teacher"
        if arm.teacher not in self.study.teachers:
            known = ", ".join(self.study.teachers)
            self.fail(key, f"{arm.teacher!r} is no teacher; there are: {known}")
        if not isinstance(self.study.teachers[arm.teacher], GivenTeacher):
            self.fail(
                key,
                f"{arm.teacher} is trained here and has a tokenizer of its own, so a model of the "
                f"hub cannot stand beside it; name a teacher of source hub or folder",
            )

    def _baseline(self, name: str, arm: BaselineArm) -> None:
        references = [n for n, a in self.study.arms.items() if isinstance(a, IskdArm)]
        if arm.reference is not None and arm.reference not in references:
            self.fail(
                f"arms.{name}.reference",
                f"{arm.reference!r} is no arm of method iskd; "
                f"there are: {', '.join(references) or 'none'}",
            )
        if arm.reference is None and len(references) != 1:
            self.fail(
                f"arms.{name}.reference",
                f"missing; say which iskd arm is matched ({', '.join(references) or 'add one'})",
            )
        if len(set(arm.steps or [])) != len(arm.steps or []):
            self.fail(f"arms.{name}.steps", "the same step stands here twice; each may stand once")
        for teacher_name, teacher in self.study.teachers.items():
            for step in arm.steps or []:
                if step > step_count(teacher):
                    self.fail(
                        f"arms.{name}.steps",
                        f"step {step} does not exist; {teacher_name} has {step_count(teacher)}",
                    )
            if isinstance(arm, LayerDropArm) and arm.match == "steps":
                last = max(arm.steps or [teacher.headline or step_count(teacher)])
                if last >= block_count(teacher):
                    self.fail(
                        f"arms.{name}.match",
                        f"steps would leave out all {last} blocks of {teacher_name}; use "
                        f"parameters, or match an earlier step",
                    )
            if isinstance(arm, OneShotArm | TheseusArm) and _recipe(arm, teacher) != "parts":
                self._known_order(f"arms.{name}.order", arm.order or teacher.order)
            if isinstance(arm, LayerDropArm) and arm.choose == "reference":
                reference = self.study.arms[arm.reference or references[0]]
                own = reference.order if isinstance(reference, IskdArm) else None
                self._known_order(f"arms.{name}.choose", own or teacher.order)

    def _known_order(self, key: str, order: object) -> None:
        if order == "measured":
            self.fail(
                key,
                "a measured order is found step by step and not known beforehand; use one that is "
                "a list or random",
            )

    def _replacing(self, name: str, arm: IskdArm | OneShotArm | TheseusArm) -> None:
        for teacher_name, teacher in self.study.teachers.items():
            if arm.compact is not None:
                shape = None if isinstance(teacher, GivenTeacher) else teacher.architecture
                self.compact(f"arms.{name}.compact", arm.compact, teacher, shape)
            if isinstance(arm.order, list):
                self.order(f"arms.{name}.order", arm.order, block_count(teacher))
                if len(arm.order) < step_count(teacher):
                    self.fail(
                        f"arms.{name}.order",
                        f"{len(arm.order)} blocks, but {teacher_name} has "
                        f"{step_count(teacher)} steps",
                    )
            if isinstance(arm, IskdArm) and arm.as_published:
                self._published(name, arm, teacher_name, teacher)
            if _recipe(arm, teacher) == "parts":
                self._chosen_parts(name, arm, teacher)

    def _chosen_parts(
        self, name: str, arm: IskdArm | OneShotArm | TheseusArm, teacher: Teacher
    ) -> None:
        if isinstance(arm, TheseusArm):
            self.fail(
                f"arms.{name}.compact.recipe",
                "recipe parts changes blocks before any training; use narrow, or method one_shot",
            )
        if isinstance(arm, OneShotArm) and not self._measures(arm, teacher):
            self.fail(
                f"arms.{name}.reference",
                "recipe parts measures on sequences that its reference sets aside; name an iskd "
                "arm of recipe parts, or with a measured order",
            )
        if arm.order not in (None, "measured"):
            self.fail(f"arms.{name}.order", "recipe parts measures its order; remove this key")
        if arm.warm_start:
            self.fail(
                f"arms.{name}.warm_start",
                "recipe parts starts from the teacher's own weights; remove this key",
            )

    def _measures(self, arm: BaselineArm, teacher: Teacher) -> bool:
        """Say whether a baseline's reference sets sequences aside to measure on."""
        named = [a for n, a in self.study.arms.items() if arm.reference in (None, n)]
        reference = next((one for one in named if isinstance(one, IskdArm)), None)
        if reference is None:
            return True  # the rule about references has a line for it
        order = reference.order or teacher.order
        return order == "measured" or _recipe(reference, teacher) == "parts"

    def _published(self, name: str, arm: IskdArm, teacher_name: str, teacher: Teacher) -> None:
        compact = arm.compact or teacher.compact
        if teacher.family not in PUBLISHED_FAMILIES:
            self.fail(
                f"arms.{name}.as_published",
                f"the published code has no family {teacher.family} (teacher {teacher_name}); "
                f"it has {' and '.join(PUBLISHED_FAMILIES)}",
            )
        if compact.recipe != "paper" or compact.initialisation not in (None, "paper"):
            self.fail(
                f"arms.{name}.as_published",
                "the published code has recipe paper and initialisation paper; set both so",
            )
        if arm.objective != Objective() or arm.warm_start:
            self.fail(
                f"arms.{name}.as_published",
                "the published code trains on the next token alone; remove objective and "
                "warm_start",
            )
