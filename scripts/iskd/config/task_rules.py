"""Rules about what a study measures its models on."""

from iskd.config.rules import Rules
from iskd.config.schema import Claim, FileTask, HeldoutTask, HubTask, LmEvalTask, ToyCorpus, ToyTask
from iskd.errors import UserError
from iskd.evaluation.catalogue import check_fewshot, find_task, hub_rows
from iskd.evaluation.kinds import KINDS

# Tasks of metrics.csv that are no task of the config.
RESERVED_TASKS = ("heldout", "model", "training", "generation", "efficiency", "cost")


class TaskRules(Rules):
    """Rules about tasks, texts and claims."""

    def check(self) -> None:
        """Check every task, and the name of every text."""
        for name in self.study.tasks:
            self._measured_name(f"tasks.{name}", name)
            self._task(name)
        self._mix()
        for name in self.study.texts:
            self._measured_name(f"texts.{name}", name)
            if name in self.study.tasks:
                self.fail(f"texts.{name}", "a task has this name; choose another")

    def _mix(self) -> None:
        """Check that what is mixed into the corpus is there and leaves room for the corpus."""
        mix = self.study.corpus.mix
        for name in mix:
            if name not in self.study.texts:
                known = ", ".join(self.study.texts) or "none"
                self.fail(f"corpus.mix.{name}", f"no text has this name; under texts: {known}")
        if sum(mix.values()) >= 1:
            self.fail("corpus.mix", "the shares come to 1 or more; leave some for the corpus")

    def claims(self) -> None:
        """Check that what is claimed is about a teacher, a task and a metric of the study."""
        for place, claim in enumerate(self.study.claims):
            for key, known in (("teacher", self.study.teachers), ("task", self.study.tasks)):
                name = getattr(claim, key)
                if name not in known:
                    self.fail(f"claims.{place}.{key}", f"{name!r}; there are: {', '.join(known)}")
            self._claimed_metric(f"claims.{place}.metric", claim)

    def _claimed_metric(self, key: str, claim: Claim) -> None:
        """Check that what a claim is about is measured."""
        kind = self.study.tasks[claim.task].kind or claim.task
        measured = KINDS[kind].metrics if kind in KINDS else find_task(kind).metrics
        if claim.metric not in measured:
            self.fail(key, f"{claim.metric!r}; tasks.{claim.task} has {', '.join(measured)}")

    def _measured_name(self, key: str, name: str) -> None:
        if name in RESERVED_TASKS:
            self.fail(key, "this name stands for something else in metrics.csv; choose another")

    def _task(self, name: str) -> None:
        task = self.study.tasks[name]
        kind = task.kind or name
        key = f"tasks.{name}.kind" if task.kind else f"tasks.{name}"
        if isinstance(task, LmEvalTask):
            self._stock_task(name, key, kind, task.fewshot)
            return
        if kind not in KINDS:
            if not isinstance(task, FileTask | HubTask):
                self.fail(key, f"unknown task; use one of {', '.join(KINDS)}, or say its kind")
            self._stock_task(name, key, kind)
        corpus = self.study.corpus
        if isinstance(task, ToyTask):
            if not isinstance(corpus, ToyCorpus):
                self.fail(f"tasks.{name}.source", "toyworld makes rows only for corpus: toyworld")
            made = corpus.continuation_rows if kind == "hellaswag" else corpus.cloze_rows
            if task.rows is not None and task.rows > made:
                self.fail(f"tasks.{name}.rows", f"{task.rows} asked, the corpus makes {made}")
        if isinstance(task, HeldoutTask) and not kind.startswith("cbt_"):
            self.fail(f"tasks.{name}.kind", "held-out stories give cbt_question and cbt_context")

    def _stock_task(self, name: str, key: str, kind: str, fewshot: int | None = None) -> None:
        """Check that lm-eval has a task, that it can be run here, and that its rows can be had."""
        try:
            described = find_task(kind)
        except UserError as error:
            hint = f"; tasks of our own are {', '.join(KINDS)}" if fewshot is None else ""
            self.fail(key, f"{error}{hint}")
        if described.headline is None:
            self.fail(key, f"{kind} has no metric that figures and tables can quote; use another")
        if fewshot is None:
            return
        try:
            check_fewshot(described, fewshot)
        except UserError as error:
            self.fail(f"tasks.{name}.fewshot", str(error))
        try:
            rows = hub_rows(described)
        except UserError as error:
            self.fail(key, str(error))
        if rows.options:
            self.fail(
                key,
                f"{kind} reads its data set with {', '.join(rows.options)}, which is not known "
                f"here; give its rows yourself, with source: file",
            )
