"""What a study consists of: its models, their places, and what each job is asked.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from iskd.config.checks import block_count, step_count
from iskd.config.schema import (
    FITTED,
    Arm,
    BaselineArm,
    Compact,
    FolderTeacher,
    HubArm,
    HubCorpus,
    HubTask,
    HubTeacher,
    HubText,
    IskdArm,
    KdArm,
    L1Arm,
    LayerDropArm,
    LmEvalTask,
    Objective,
    OneShotArm,
    PretrainedHere,
    Replacing,
    Study,
    Teacher,
    TeacherTunedArm,
    TheseusArm,
    ToyCorpus,
    ToyText,
    Training,
)
from iskd.evaluation.catalogue import find_task, hub_rows
from iskd.evaluation.kinds import KINDS
from iskd.evaluation.results import TEACHER_ARM

ACCURACIES = ("acc", "acc_norm", "exact_match")
"""Metrics of which it is known which items were right."""

HELDOUT = "heldout"
"""The name of the corpus's own held-out text."""

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


class StudyPlan:
    """The jobs of a study, derived from its config."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def recorded_config(self) -> str:
        """Give the whole config with its defaults, but for what decides on no result, as YAML.

        A text, because the order of arms and tasks is that of rows and legends.
        """
        config = self.study.model_dump(mode="json")
        for teacher in config["teachers"].values():
            for key in ("gpus", "parallel"):
                del teacher[key]
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)

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

    def substituted(self) -> list[ModelId]:
        """List the evaluated models that one more block was replaced in."""
        return [model for model in self.models() if self.producer(model) == "substitute_block"]

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

    def is_stock(self, task: str) -> bool:
        """Tell whether a task is lm-eval's own, not one of our kinds."""
        settings = self.study.tasks[task]
        return isinstance(settings, LmEvalTask) or self.kind(task) not in KINDS

    def fewshot(self, task: str) -> int:
        """Give the number of examples in a task's prompts."""
        settings = self.study.tasks[task]
        return settings.fewshot if isinstance(settings, LmEvalTask) else 0

    def download_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``download_task``: where the rows lie, and examples if there are any."""
        settings = self.study.tasks[task]
        if isinstance(settings, HubTask):
            return settings.model_dump(include={"dataset", "config", "revision", "split"}) | {
                "examples": None
            }
        described = find_task(self.kind(task))
        rows = hub_rows(described)
        return {
            "dataset": rows.dataset,
            "config": rows.config,
            "revision": getattr(settings, "revision", None),
            "split": described.split,
            "examples": described.fewshot_split if self.fewshot(task) else None,
        }

    def rows_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``prepare_task``."""
        settings = self.study.tasks[task]
        return {
            "kind": self.kind(task),
            "stock": self.is_stock(task),
            "source": settings.source,
            "rows": settings.rows,
        }

    def hub_tasks(self) -> list[str]:
        """List the tasks whose rows are fetched from the hub."""
        tasks = self.study.tasks.items()
        return [name for name, task in tasks if isinstance(task, HubTask | LmEvalTask)]

    def hub_teachers(self) -> list[str]:
        """List the teachers that are fetched from the hub."""
        return [n for n, teacher in self.study.teachers.items() if isinstance(teacher, HubTeacher)]

    def hub_arms(self) -> list[str]:
        """List the arms that are finished models of the hub."""
        return [name for name, arm in self.study.arms.items() if isinstance(arm, HubArm)]

    # --- texts ------------------------------------------------------------------------------

    def text_names(self) -> list[str]:
        """List the texts that the loss is measured on: the corpus's own, and those beside it."""
        return [HELDOUT, *self.study.texts]

    def text_spec(self, text: str) -> dict[str, Any]:
        """Parameters of ``prepare_text``."""
        settings = self.study.texts[text]
        rows = None if isinstance(settings, ToyText) else settings.rows
        return {"rows": rows, "block_length": self.study.corpus.block_length}

    def hub_texts(self) -> list[str]:
        """List the texts that are fetched from the hub."""
        return [name for name, text in self.study.texts.items() if isinstance(text, HubText)]

    # --- evaluation and paper ---------------------------------------------------------------

    def tokenizer_spec(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``train_tokenizer``."""
        shape = self._pretrained(teacher).architecture
        return {"vocabulary": shape.vocabulary, "positions": shape.positions}

    def evaluation_spec(self, task: str) -> dict[str, Any]:
        """Parameters of ``evaluate``."""
        return {
            "kind": self.kind(task),
            "stock": self.is_stock(task),
            "fewshot": self.fewshot(task),
            # Of the draw of examples; the rows are drawn by then.
            "seed": self.study.tasks[task].seed if self.fewshot(task) else 0,
            **self.heldout_spec(),
        }

    def heldout_spec(self) -> dict[str, Any]:
        """Parameters of ``evaluate_heldout``."""
        return self.study.evaluation.model_dump(include={"batch_size", "precision"})

    def generating(self) -> list[ModelId]:
        """List the models that continue prompts: those given, and each arm's at the headline."""
        if self.study.generation is None:
            return []
        return self._at_headline()

    def measured(self) -> list[ModelId]:
        """List the models whose speed is measured beside their teacher's: one of each arm."""
        if self.study.evaluation.efficiency is None:
            return []
        return [m for m in self._at_headline() if m.arm != TEACHER_ARM]

    def _at_headline(self) -> list[ModelId]:
        """List the models as given, and each arm's first one at the headline step."""
        first = (None, self.study.seeds[0])
        return [
            m for m in self.models() if m.step in (0, self.headline(m.teacher)) and m.seed in first
        ]

    def efficiency_spec(self) -> dict[str, Any]:
        """Parameters of ``measure_efficiency``; its seed is a parameter of its own."""
        assert self.study.evaluation.efficiency is not None  # noqa: S101 - else no such job
        return {
            **self.study.evaluation.efficiency.model_dump(exclude={"seed"}),
            "precision": self.study.evaluation.precision,
        }

    def measurement_spec(self) -> dict[str, Any]:
        """Parameters of ``collect_measurements``: what each collected file is about."""
        models = self.models()
        return {
            "study": self.study.study,
            "repeats": [asdict(model) for model in self.measured()],
            "trained": [asdict(model) for model in self.all_trained()],
            "evaluated": [
                asdict(model) for model in models for _ in (*self.study.tasks, *self.text_names())
            ],
            "chained": list(self.iskd_arms()),
        }

    def all_trained(self) -> list[ModelId]:
        """List every model that is trained here, teachers included."""
        teachers = self.study.teachers.items()
        here = [name for name, teacher in teachers if isinstance(teacher, PretrainedHere)]
        return [*(self.teacher_model(name) for name in here), *self.trained()]

    def generation_spec(self) -> dict[str, Any]:
        """Parameters of ``generate``; its seed is a parameter of its own."""
        assert self.study.generation is not None  # noqa: S101 - else there is no such job
        return {
            **self.study.generation.model_dump(exclude={"seed"}),
            "precision": self.study.evaluation.precision,
        }

    def overlap_spec(self) -> dict[str, Any]:
        """Parameters of ``measure_overlap``."""
        return {"n": self.study.overlap.n}

    def collection_spec(self) -> dict[str, Any]:
        """Parameters of ``collect_metrics``: what each collected file is about, in their order."""
        models = [asdict(model) for model in self.models()]
        return {
            "study": self.study.study,
            "evaluations": [{**m, "task": task} for m in models for task in self.study.tasks],
            "heldout": [{**m, "text": text} for m in models for text in self.text_names()],
            "generations": [asdict(model) for model in self.generating()],
            "overlaps": [{"task": task} for task in self.study.tasks],
            "substitutions": [asdict(model) for model in self.substituted()],
            "bootstrap": self.study.evaluation.bootstrap.model_dump(),
            "histories": [asdict(model) for model in self.trained()],
            "chained": list(self.iskd_arms()),
        }

    def reporting_spec(self) -> dict[str, Any]:
        """Parameters of figures and tables: the metric to quote per task."""
        return {
            "study": self.study.study,
            "headline": {task: self.headline_metric(task) for task in self.study.tasks},
            "claims": [claim.model_dump() for claim in self.study.claims],
        }

    def curves_spec(self) -> dict[str, Any]:
        """Parameters of ``figure_training``: what each history is about."""
        return {
            "histories": [asdict(model) for model in self.trained()],
            "chained": list(self.iskd_arms()),
        }

    def numbers_spec(self) -> dict[str, Any]:
        """Parameters of ``paper_numbers`` and ``paper_measured_numbers``."""
        return {"study": self.study.study, "headline_step": self.headline_steps()}

    def summary_spec(self) -> dict[str, Any]:
        """Parameters of ``summarize``."""
        return {
            **self.reporting_spec(),
            "headline_step": self.headline_steps(),
            "seeds": self.study.seeds,
            "corpus": self.corpus_in_words(),
        }

    def corpus_in_words(self) -> str:
        """Say what the study's corpus is."""
        corpus = self.study.corpus
        if isinstance(corpus, HubCorpus):
            return f"{corpus.dataset}, split {corpus.split}"
        if isinstance(corpus, ToyCorpus):
            return f"{corpus.stories} stories of the embedded world"
        return f"local files ({', '.join(corpus.files)})"

    def carded(self) -> list[ModelId]:
        """List the models that get a card: each arm's, of every seed, at the headline step."""
        return [
            m for m in self.models() if m.seed is not None and m.step == self.headline(m.teacher)
        ]

    def card_spec(self, model: str) -> dict[str, Any]:
        """Parameters of ``model_card``."""
        about = ModelId.parse(model)
        teacher, corpus = self.study.teachers[about.teacher], self.study.corpus
        return {
            **self.reporting_spec(),
            "model": asdict(about),
            "method": self.study.arms[about.arm].method,
            "base_model": teacher.model if isinstance(teacher, HubTeacher) else None,
            "corpus": self.corpus_in_words(),
            "datasets": [corpus.dataset] if isinstance(corpus, HubCorpus) else [],
        }

    def has_figure(self, teacher: str, figure: str) -> bool:
        """Tell whether a study has what one of a teacher's figures shows."""
        models = [model for model in self.models() if model.teacher == teacher]
        if figure == "training":
            return any(model.teacher == teacher for model in self.trained())
        if figure == "order":
            steps = {(m.arm, m.seed, m.step) for m in self.substituted() if m.teacher == teacher}
            return any(step == 1 or (arm, seed, step - 1) in steps for arm, seed, step in steps)
        if figure == "flips":
            compared = any(model.arm != TEACHER_ARM for model in models)
            return compared and any(
                self.headline_metric(task) in ACCURACIES for task in self.study.tasks
            )
        return True

    def headline_metric(self, task: str) -> str:
        """Name the metric to quote where one number of a task is quoted."""
        kind = self.kind(task)
        if self.is_stock(task):
            metric = find_task(kind).headline
            assert metric is not None  # noqa: S101 - checked with the config
            return metric
        return KINDS[kind].headline

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
