"""Rules between the keys of a config, which a schema cannot say."""

from iskd.config.arm_rules import ArmRules
from iskd.config.counts import step_count
from iskd.config.rules import Rules
from iskd.config.schema import PretrainedHere
from iskd.config.task_rules import TaskRules
from iskd.config.teacher_rules import TeacherRules


class Checks(Rules):
    """All rules, for one study."""

    def run(self) -> None:
        """Look at every rule.

        Raises:
            UserError: the first one that is broken.
        """
        if len(set(self.study.seeds)) != len(self.study.seeds):
            self.fail("seeds", "the same seed stands here twice; each may stand once")
        for name in self.study.teachers:
            TeacherRules(self.study, self.file).check(name)
        tasks = TaskRules(self.study, self.file)
        tasks.check()
        for name in self.study.arms:
            ArmRules(self.study, self.file).check(name)
        tasks.claims()
        self._evaluated_steps()
        self._generation()
        self._efficiency()
        self._tracking()

    def _tracking(self) -> None:
        """Check that no tracker is named twice, and none beside others."""
        named, key = self.study.tracking.report_to, "tracking.report_to"
        if len(set(named)) != len(named):
            self.fail(key, "a tracker stands here twice; remove one")
        if "none" in named and len(named) > 1:
            self.fail(key, "'none' stands beside trackers; remove it, or them")

    def _evaluated_steps(self) -> None:
        """Check that the steps of a list exist, and that the one that tables report is there."""
        steps = self.study.evaluation.steps
        for name, teacher in self.study.teachers.items():
            if not isinstance(steps, list):
                return
            last = step_count(teacher)
            if max(steps) > last:
                self.fail(
                    "evaluation.steps", f"step {max(steps)} does not exist; {name} has {last}"
                )
            headline = teacher.headline or last
            if headline not in steps:
                self.fail(
                    "evaluation.steps",
                    f"{name}'s headline step {headline} is missing, which tables report; add it",
                )

    def _generation(self) -> None:
        """Check that prompts fit into held-out sequences and continuations into the models."""
        generation = self.study.generation
        if generation is None:
            return
        length = self.study.corpus.block_length
        if generation.prompt_tokens > length:
            self.fail(
                "generation.prompt_tokens",
                f"{generation.prompt_tokens} is more than corpus.block_length ({length}); lower it",
            )
        whole = generation.prompt_tokens + generation.new_tokens
        for name, teacher in self.study.teachers.items():
            if isinstance(teacher, PretrainedHere) and whole > teacher.architecture.positions:
                self.fail(
                    "generation.new_tokens",
                    f"prompt and continuation have {whole} tokens, teachers.{name} reads "
                    f"{teacher.architecture.positions} (architecture.positions); lower it, or set "
                    f"generation: null",
                )

    def _efficiency(self) -> None:
        """Check that what is read and written when speed is measured fits into the teachers."""
        efficiency = self.study.evaluation.efficiency
        if efficiency is None:
            return
        sizes, whole = efficiency.batch_sizes, efficiency.prompt_tokens + efficiency.new_tokens
        if len(set(sizes)) != len(sizes):
            self.fail("evaluation.efficiency.batch_sizes", "a size stands here twice; remove one")
        for name, teacher in self.study.teachers.items():
            if isinstance(teacher, PretrainedHere) and whole > teacher.architecture.positions:
                self.fail(
                    "evaluation.efficiency.new_tokens",
                    f"{whole} tokens are read and written, teachers.{name} has "
                    f"{teacher.architecture.positions} (architecture.positions); lower it",
                )
