"""The parameters of a study's jobs, but for those that train: :mod:`iskd.plan.trainings`.

Everything here is known before the run, so the rule graph needs no Snakemake checkpoint. A job's
parameters hold exactly what its result depends on: Snakemake reruns a job when they change.
"""

from dataclasses import asdict
from typing import Any

import yaml

from iskd.config.schema import (
    Arm,
    FolderTeacher,
    GivenTeacher,
    HubArm,
    HubCorpus,
    HubTask,
    HubTeacher,
    HubText,
    LmEvalTask,
    Objective,
    Study,
    ToyCorpus,
    ToyText,
)
from iskd.evaluation.catalogue import find_task, hub_rows
from iskd.evaluation.kinds import KINDS
from iskd.evaluation.results import TEACHER_ARM
from iskd.plan.models import ModelId, StudyModels

ACCURACIES = ("acc", "acc_norm", "exact_match")
"""Metrics of which it is known which items were right."""

HELDOUT = "heldout"
"""The name of the corpus's own held-out text."""


class StudyJobs:
    """The parameters of the jobs that prepare, evaluate, collect and report.

    Each method gives the named parameters of one rule.

    Args:
        study: the checked config.
        models: the study's models.
    """

    def __init__(self, study: Study, models: StudyModels) -> None:
        self.study = study
        self.models = models

    def recorded_config(self) -> str:
        """Give the whole config with its defaults, but for what decides on no result, as YAML.

        A text, because the order of arms and tasks is that of rows and legends.
        """
        config = self.study.model_dump(mode="json", exclude={"tracking"})
        for teacher in config["teachers"].values():
            for key in ("gpus", "parallel"):
                del teacher[key]
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)

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

    def download(self, task: str) -> dict[str, Any]:
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

    def rows(self, task: str) -> dict[str, Any]:
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

    def import_model(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``import_model``; the precision only counts where weights are unpacked."""
        settings = self.study.teachers[teacher]
        assert isinstance(settings, FolderTeacher)  # noqa: S101 - the rule takes only these
        params = settings.model_dump(include={"folder", "gguf", "family", "blocks"})
        return params | {"save_precision": settings.save_precision if settings.gguf else None}

    def hub_arms(self) -> list[str]:
        """List the arms that are finished models of the hub."""
        return [name for name, arm in self.study.arms.items() if isinstance(arm, HubArm)]

    # --- texts ------------------------------------------------------------------------------

    def text_names(self) -> list[str]:
        """List the texts that the loss is measured on: the corpus's own, and those beside it."""
        return [HELDOUT, *(name for name in self.study.texts if name not in self.study.corpus.mix)]

    def text(self, text: str) -> dict[str, Any]:
        """Parameters of ``prepare_text``."""
        settings = self.study.texts[text]
        rows = None if isinstance(settings, ToyText) else settings.rows
        return {"rows": rows, "block_length": self.study.corpus.block_length}

    def hub_texts(self) -> list[str]:
        """List the texts that are fetched from the hub."""
        return [name for name, text in self.study.texts.items() if isinstance(text, HubText)]

    # --- evaluation and paper ---------------------------------------------------------------

    def tokenizer(self, teacher: str) -> dict[str, Any]:
        """Parameters of ``train_tokenizer``."""
        shape = self.models.pretrained(teacher).architecture
        return {"vocabulary": shape.vocabulary, "positions": shape.positions}

    def evaluation(self, task: str) -> dict[str, Any]:
        """Parameters of ``evaluate``."""
        return {
            "task": {
                "kind": self.kind(task),
                "stock": self.is_stock(task),
                "fewshot": self.fewshot(task),
            },
            # Of the draw of examples; the rows are drawn by then.
            "seed": self.study.tasks[task].seed if self.fewshot(task) else 0,
            **self.heldout(),
        }

    def heldout(self) -> dict[str, Any]:
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
            model
            for model in self.models.evaluated()
            if model.step in (0, self.models.headline(model.teacher)) and model.seed in first
        ]

    def efficiency(self) -> dict[str, Any]:
        """Parameters of ``measure_efficiency``; its seed is a parameter of its own."""
        assert self.study.evaluation.efficiency is not None  # noqa: S101 - else no such job
        return {
            # Without a draft the key is left out, so that what was measured before it stays.
            "load": self.study.evaluation.efficiency.model_dump(
                exclude={"seed"}, exclude_none=True
            ),
            "precision": self.study.evaluation.precision,
        }

    def measurements(self) -> dict[str, Any]:
        """Parameters of ``collect_measurements``: what each collected file is about."""
        models = self.models.evaluated()
        return {
            "study": self.study.study,
            "repeats": [asdict(model) for model in self.measured()],
            "trained": [asdict(model) for model in self.models.all_trained()],
            "evaluated": [
                asdict(model) for model in models for _ in (*self.study.tasks, *self.text_names())
            ],
            "chained": list(self.models.iskd_arms()),
        }

    def generation(self) -> dict[str, Any]:
        """Parameters of ``generate``; its seed is a parameter of its own."""
        assert self.study.generation is not None  # noqa: S101 - else there is no such job
        return {
            "sampling": self.study.generation.model_dump(exclude={"seed"}),
            "precision": self.study.evaluation.precision,
        }

    def overlap(self) -> dict[str, Any]:
        """Parameters of ``measure_overlap``."""
        return {"n": self.study.overlap.n}

    def metrics(self) -> dict[str, Any]:
        """Parameters of ``collect_metrics``: what each collected file is about, in their order."""
        models = [asdict(model) for model in self.models.evaluated()]
        return {
            "study": self.study.study,
            "evaluations": [{**m, "task": task} for m in models for task in self.study.tasks],
            "heldout": [{**m, "text": text} for m in models for text in self.text_names()],
            "generations": [asdict(model) for model in self.generating()],
            "overlaps": [{"task": task} for task in self.study.tasks],
            "substitutions": [asdict(model) for model in self.models.substituted()],
            "bootstrap": self.study.evaluation.bootstrap.model_dump(),
            "histories": [asdict(model) for model in self.models.trained()],
            "chained": list(self.models.iskd_arms()),
        }

    def reporting(self) -> dict[str, Any]:
        """Parameters of figures and tables: the metric to quote per task."""
        return {
            "study": self.study.study,
            "headline": {task: self.headline_metric(task) for task in self.study.tasks},
            "claims": [claim.model_dump() for claim in self.study.claims],
        }

    def curves(self) -> dict[str, Any]:
        """Parameters of ``figure_training``: what each history is about, and of which loss."""
        return {
            "histories": [asdict(model) for model in self.models.trained()],
            "chained": list(self.models.iskd_arms()),
            "mixed": sorted(name for name, arm in self.study.arms.items() if not _is_plain(arm)),
        }

    def substitutions(self) -> dict[str, Any]:
        """Parameters of ``figure_order``: what each substitution is about."""
        return {"substitutions": [asdict(model) for model in self.models.substituted()]}

    def numbers(self) -> dict[str, Any]:
        """Parameters of ``paper_numbers`` and ``paper_measured_numbers``."""
        return {"study": self.study.study, "headline_step": self.models.headline_steps()}

    def summary(self) -> dict[str, Any]:
        """Parameters of ``summarize``."""
        return {
            **self.reporting(),
            "headline_step": self.models.headline_steps(),
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
            model
            for model in self.models.evaluated()
            if model.seed is not None and model.step == self.models.headline(model.teacher)
        ]

    def card(self, model: str) -> dict[str, Any]:
        """Parameters of ``model_card``."""
        about = ModelId.parse(model)
        corpus = self.study.corpus
        return {
            **self.reporting(),
            "model": asdict(about),
            "method": self.study.arms[about.arm].method,
            **self._origin(about.teacher),
            "tasks": list(self.study.tasks),
            "texts": self.text_names(),
            "corpus": self.corpus_in_words(),
            "datasets": [corpus.dataset] if isinstance(corpus, HubCorpus) else [],
        }

    def _origin(self, name: str) -> dict[str, Any]:
        """Give what is known of where a teacher comes from, and of its licence."""
        teacher = self.study.teachers[name]
        if isinstance(teacher, HubTeacher):
            base: str | None = teacher.model
        else:
            base = teacher.base_model if isinstance(teacher, FolderTeacher) else None
        given = isinstance(teacher, GivenTeacher)
        licence = teacher.licence if isinstance(teacher, GivenTeacher) else None
        return {"base_model": base, "licence": licence, "given": given}

    def has_figure(self, teacher: str, figure: str) -> bool:
        """Tell whether a study has what one of a teacher's figures shows."""
        models = [model for model in self.models.evaluated() if model.teacher == teacher]
        if figure == "training":
            return any(model.teacher == teacher for model in self.models.trained())
        if figure == "order":
            substituted = [m for m in self.models.substituted() if m.teacher == teacher]
            steps = {(m.arm, m.seed, m.step) for m in substituted}
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


def _is_plain(arm: Arm) -> bool:
    """Tell whether an arm is trained on the next token alone."""
    objective = getattr(arm, "objective", None) or Objective()
    return objective.next_token == 1 and not (objective.kl or objective.hidden)
