"""Rules about the teachers of a study."""

from iskd.config.block_rules import BlockRules
from iskd.config.counts import block_count, step_count
from iskd.config.schema import GivenTeacher, HubArm, Teacher, TheseusArm

# Snakemake follows a chain of jobs by recursion, and Python ends that at about 480.
MOST_STEPS = 400


class TeacherRules(BlockRules):
    """Rules about teachers."""

    def check(self, name: str) -> None:
        """Check one teacher."""
        key, teacher = f"teachers.{name}", self.study.teachers[name]
        blocks = block_count(teacher)
        if isinstance(teacher.order, list):
            self.order(f"{key}.order", teacher.order, blocks)
        available = len(teacher.order) if isinstance(teacher.order, list) else blocks
        if teacher.steps is not None and teacher.steps > available:
            self.fail(f"{key}.steps", f"{teacher.steps} steps, but the order has {available}")
        steps = step_count(teacher)
        if steps > MOST_STEPS:
            self.fail(
                f"{key}.steps",
                f"{steps} steps are more than Snakemake can follow; set at most {MOST_STEPS}",
            )
        if teacher.headline is not None and teacher.headline > steps:
            self.fail(f"{key}.headline", f"step {teacher.headline} does not exist; last is {steps}")
        self.shapes(key, teacher)
        self._processes(key, teacher)
        self._fitting(key, teacher)

    def _fitting(self, key: str, teacher: Teacher) -> None:
        """Check that no arm needs more of a batch, or of a model, than its training will show."""
        training = teacher.training
        for name, arm in self.study.arms.items():
            own = None if isinstance(arm, HubArm) else arm.training.batch_size
            share = (own or training.batch_size) // teacher.gpus
            parts = training.micro_batch is not None and training.micro_batch < share
            objective = getattr(arm, "objective", None)
            hidden = objective is not None and bool(objective.hidden)
            if parts and hidden:
                self.fail(
                    f"{key}.training.micro_batch",
                    f"the term hidden of arms.{name}.objective is a mean over the whole batch, "
                    "which must go through the model at once; leave micro_batch out, or set hidden "
                    "to 0",
                )
            if training.compile and isinstance(arm, TheseusArm):
                self.fail(
                    f"{key}.training.compile",
                    f"arms.{name} (method theseus) puts another block in a block's place at every "
                    "step, which a compiled one does not allow; leave compile out, or that arm",
                )

    def _processes(self, key: str, teacher: Teacher) -> None:
        """Check that the processes of a training can share every batch evenly."""
        if teacher.parallel == "fsdp" and teacher.gpus == 1:
            self.fail(
                f"{key}.parallel", "fsdp splits a model between GPUs; set gpus to 2 or more, or ddp"
            )
        trainings = {"training": teacher.training.compile}
        if not isinstance(teacher, GivenTeacher):
            trainings["pretraining"] = teacher.pretraining.compile
        for section, compiled in trainings.items():
            if compiled and teacher.parallel == "fsdp":
                self.fail(
                    f"{key}.{section}.compile",
                    "fsdp puts other classes in the place of the blocks, which are then not "
                    "compiled; leave compile out, or take ddp",
                )
        sizes = {f"{key}.training.batch_size": teacher.training.batch_size}
        if not isinstance(teacher, GivenTeacher):
            sizes[f"{key}.pretraining.batch_size"] = teacher.pretraining.batch_size
        for name, arm in self.study.arms.items():
            if isinstance(arm, TheseusArm) and teacher.parallel == "fsdp":
                self.fail(
                    f"{key}.parallel",
                    f"fsdp cannot hold both blocks of arms.{name} (method theseus); use ddp",
                )
            if not isinstance(arm, HubArm) and arm.training.batch_size is not None:
                sizes[f"arms.{name}.training.batch_size"] = arm.training.batch_size
        for place, size in sizes.items():
            if size % teacher.gpus:
                self.fail(
                    place,
                    f"{size} sequences cannot be shared evenly by the {teacher.gpus} GPUs of "
                    f"{key}.gpus; make it a multiple of {teacher.gpus}",
                )
