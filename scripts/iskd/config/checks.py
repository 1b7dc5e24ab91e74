"""Rules between the keys of a config, which a schema cannot say."""

from typing import NoReturn

from iskd.config.schema import (
    FITTED,
    Architecture,
    Arm,
    BaselineArm,
    Claim,
    Compact,
    FileTask,
    GivenTeacher,
    HeldoutTask,
    HubArm,
    HubTask,
    IskdArm,
    KdArm,
    LayerDropArm,
    LmEvalTask,
    Objective,
    OneShotArm,
    PretrainedHere,
    Study,
    Teacher,
    TheseusArm,
    ToyCorpus,
    ToyTask,
)
from iskd.errors import UserError
from iskd.evaluation.catalogue import check_fewshot, find_task, hub_rows
from iskd.evaluation.kinds import KINDS
from iskd.evaluation.results import TEACHER_ARM

# Tasks of metrics.csv that are no task of the config.
RESERVED_TASKS = ("heldout", "model", "training", "generation", "efficiency", "cost")

# What a head's size must be a multiple of, by the share of it that the family's fresh configs
# rotate in pairs: half in Phi, a quarter in GPT-NeoX, all in Llama and its relatives.
HEAD_GRAIN = {"phi": 4, "gpt_neox": 8, "llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 2}
# Families whose heads never share keys and values.
OWN_KEYS = ("gpt2", "gpt_neox")
PUBLISHED_FAMILIES = ("gpt2", "phi")

# Snakemake follows a chain of jobs by recursion, and Python ends that at about 480.
MOST_STEPS = 400


def block_count(teacher: Teacher) -> int:
    """Count the blocks of a teacher, as its config states them."""
    return teacher.blocks if isinstance(teacher, GivenTeacher) else teacher.architecture.blocks


def step_count(teacher: Teacher) -> int:
    """Count the substitutions made in a teacher."""
    if teacher.steps is not None:
        return teacher.steps
    return len(teacher.order) if isinstance(teacher.order, list) else block_count(teacher)


class Checks:
    """The rules, for one study; ``file`` names it in messages."""

    def __init__(self, study: Study, file: str) -> None:
        self.study = study
        self.file = file

    def _fail(self, key: str, message: str) -> NoReturn:
        raise UserError(f"{self.file}: {key}: {message}")

    def run(self) -> None:
        """Look at every rule.

        Raises:
            UserError: the first one that is broken.
        """
        if len(set(self.study.seeds)) != len(self.study.seeds):
            self._fail("seeds", "the same seed stands here twice; each may stand once")
        for name, teacher in self.study.teachers.items():
            self._teacher(f"teachers.{name}", teacher)
        for name in self.study.tasks:
            self._measured_name(f"tasks.{name}", name)
            self._task(name)
        for name in self.study.texts:
            self._measured_name(f"texts.{name}", name)
            if name in self.study.tasks:
                self._fail(f"texts.{name}", "a task has this name; choose another")
        for name in self.study.arms:
            self._arm(name)
        for place, claim in enumerate(self.study.claims):
            for key, known in (("teacher", self.study.teachers), ("task", self.study.tasks)):
                name = getattr(claim, key)
                if name not in known:
                    self._fail(f"claims.{place}.{key}", f"{name!r}; there are: {', '.join(known)}")
            self._claimed_metric(f"claims.{place}.metric", claim)
        self._evaluated_steps()
        self._generation()
        self._efficiency()

    def _evaluated_steps(self) -> None:
        """Check that the steps of a list exist, and that the one that tables report is there."""
        asked = self.study.evaluation.steps
        for name, teacher in self.study.teachers.items():
            if not isinstance(asked, list):
                return
            last = step_count(teacher)
            if max(asked) > last:
                self._fail(
                    "evaluation.steps", f"step {max(asked)} does not exist; {name} has {last}"
                )
            headline = teacher.headline or last
            if headline not in asked:
                self._fail(
                    "evaluation.steps",
                    f"{name}'s headline step {headline} is missing, which tables report; add it",
                )

    def _claimed_metric(self, key: str, claim: Claim) -> None:
        """Check that what a claim is about is measured."""
        kind = self.study.tasks[claim.task].kind or claim.task
        measured = KINDS[kind].metrics if kind in KINDS else find_task(kind).metrics
        if claim.metric not in measured:
            self._fail(key, f"{claim.metric!r}; tasks.{claim.task} has {', '.join(measured)}")

    def _teacher(self, key: str, teacher: Teacher) -> None:
        blocks = block_count(teacher)
        if isinstance(teacher.order, list):
            self._order(f"{key}.order", teacher.order, blocks)
        available = len(teacher.order) if isinstance(teacher.order, list) else blocks
        if teacher.steps is not None and teacher.steps > available:
            self._fail(f"{key}.steps", f"{teacher.steps} steps, but the order has {available}")
        steps = step_count(teacher)
        if steps > MOST_STEPS:
            self._fail(
                f"{key}.steps",
                f"{steps} steps are more than Snakemake can follow; set at most {MOST_STEPS}",
            )
        if teacher.headline is not None and teacher.headline > steps:
            self._fail(
                f"{key}.headline", f"step {teacher.headline} does not exist; last is {steps}"
            )
        self._shapes(key, teacher)
        self._processes(key, teacher)
        self._fitting(key, teacher)

    def _fitting(self, key: str, teacher: Teacher) -> None:
        """Check that no arm needs more of a batch, or of a model, than its training will show."""
        asked = teacher.training
        for name, arm in self.study.arms.items():
            own = None if isinstance(arm, HubArm) else arm.training.batch_size
            share = (own or asked.batch_size) // teacher.gpus
            parts = asked.micro_batch is not None and asked.micro_batch < share
            objective = getattr(arm, "objective", None)
            hidden = objective is not None and bool(objective.hidden)
            if parts and hidden:
                self._fail(
                    f"{key}.training.micro_batch",
                    f"the term hidden of arms.{name}.objective is a mean over the whole batch, "
                    "which must go through the model at once; leave micro_batch out, or set hidden "
                    "to 0",
                )
            if asked.compile and (hidden or isinstance(arm, TheseusArm)):
                self._fail(
                    f"{key}.training.compile",
                    f"arms.{name} reaches into the model at every step, by "
                    f"{'its term hidden' if hidden else 'method theseus'}, which a compiled one "
                    "does not allow; leave compile out, or that arm",
                )

    def _processes(self, key: str, teacher: Teacher) -> None:
        """Check that the processes of a training can share every batch evenly."""
        if teacher.parallel == "fsdp" and teacher.gpus == 1:
            self._fail(
                f"{key}.parallel", "fsdp splits a model between GPUs; set gpus to 2 or more, or ddp"
            )
        sizes = {f"{key}.training.batch_size": teacher.training.batch_size}
        if not isinstance(teacher, GivenTeacher):
            sizes[f"{key}.pretraining.batch_size"] = teacher.pretraining.batch_size
        for name, arm in self.study.arms.items():
            if isinstance(arm, TheseusArm) and teacher.parallel == "fsdp":
                self._fail(
                    f"{key}.parallel",
                    f"fsdp cannot hold both blocks of arms.{name} (method theseus); use ddp",
                )
            if not isinstance(arm, HubArm) and arm.training.batch_size is not None:
                sizes[f"arms.{name}.training.batch_size"] = arm.training.batch_size
        for place, size in sizes.items():
            if size % teacher.gpus:
                self._fail(
                    place,
                    f"{size} sequences cannot be shared evenly by the {teacher.gpus} GPUs of "
                    f"{key}.gpus; make it a multiple of {teacher.gpus}",
                )

    def _order(self, key: str, order: list[int], blocks: int) -> None:
        for index in order:
            if index >= blocks:
                self._fail(
                    key, f"block {index} does not exist; the model has blocks 0 to {blocks - 1}"
                )
        twice = {i for i in order if order.count(i) > 1}
        if twice:
            self._fail(
                key, f"block {min(twice)} stands here twice; a block can be replaced only once"
            )
        if not order:
            self._fail(key, "no block is named; name at least one")

    def _shapes(self, key: str, teacher: Teacher) -> None:
        shapes: dict[str, tuple[int, int, int | None]] = {}
        if teacher.student is not None:
            own: Architecture = teacher.student
            shapes["student"] = (own.width, own.heads, own.kv_heads)
        if not isinstance(teacher, GivenTeacher):
            own = teacher.architecture
            shapes["architecture"] = (own.width, own.heads, own.kv_heads)
            self._long_enough(f"{key}.architecture.positions", teacher.architecture.positions)
        for part, (width, heads, kv_heads) in shapes.items():
            self._heads(f"{key}.{part}.heads", width, heads)
            # The family's own rule about rotary pairs, for shapes that are made here.
            grain = HEAD_GRAIN.get(teacher.family, 1)
            if width // heads % grain:
                self._fail(
                    f"{key}.{part}.heads",
                    f"{heads} makes heads of size {width // heads}; {teacher.family} needs a "
                    f"multiple of {grain}",
                )
            if kv_heads is None:
                continue
            if teacher.family in OWN_KEYS:
                self._fail(
                    f"{key}.{part}.kv_heads",
                    f"{teacher.family} gives every head keys of its own; remove this key",
                )
            if heads % kv_heads:
                self._fail(f"{key}.{part}.kv_heads", f"{kv_heads} does not divide heads ({heads})")
        made_here = None if isinstance(teacher, GivenTeacher) else teacher.architecture
        self._compact(f"{key}.compact", teacher.compact, teacher, made_here)

    def _heads(self, key: str, width: int, heads: int) -> None:
        if width % heads:
            self._fail(key, f"{heads} does not divide the width {width}")

    def _compact(
        self, key: str, compact: Compact, teacher: Teacher, shape: Architecture | None
    ) -> None:
        """Check what replaces a block; what needs the model itself is checked by the plan."""
        given = {k for k in ("width", "heads", "blocks", "mlp") if getattr(compact, k) is not None}
        narrow = compact.recipe == "narrow"
        for foreign in sorted(given & {"width", "blocks"} if narrow else set()):
            self._fail(f"{key}.{foreign}", "recipe narrow keeps width and depth; remove this key")
        if narrow and len(given) == 1:
            self._fail(f"{key}.{given.pop()}", "recipe narrow needs heads and mlp, or neither")
        if narrow and compact.activation is not None:
            self._fail(f"{key}.activation", "recipe narrow keeps the model's own; remove this key")
        decides = ("heads" if narrow else "width") in given
        if decides and compact.reduction is not None:
            self._fail(
                f"{key}.reduction", "sizes are given as well; leave out the one or the other"
            )
        if narrow and compact.initialisation == "pca":
            self._fail(
                f"{key}.initialisation", "pca sets projections and narrow has none; use teacher"
            )
        if not narrow and compact.initialisation == "teacher":
            self._fail(
                f"{key}.initialisation", "teacher keeps heads and neurons: use recipe narrow"
            )
        if narrow or compact.width is None:
            return
        if compact.initialisation in FITTED and shape is not None and compact.width > shape.width:
            self._fail(
                f"{key}.width",
                f"{compact.width} is more than the model's {shape.width}, so "
                f"{compact.initialisation} has no projection for it; lower it",
            )
        if compact.heads is None:
            return
        self._heads(f"{key}.heads", compact.width, compact.heads)
        # Only a fetched model may rotate another share of its heads than the family's own.
        grain = HEAD_GRAIN.get(teacher.family, 1) if shape is not None else 1
        if compact.width // compact.heads % grain:
            self._fail(
                f"{key}.heads",
                f"{compact.heads} makes heads of size {compact.width // compact.heads}; "
                f"{teacher.family} needs a multiple of {grain}",
            )

    def _long_enough(self, key: str, positions: int) -> None:
        length = self.study.corpus.block_length
        if positions < length:
            self._fail(
                key,
                f"{positions} is less than corpus.block_length ({length}); "
                f"raise the one or lower the other",
            )

    def _measured_name(self, key: str, name: str) -> None:
        if name in RESERVED_TASKS:
            self._fail(key, "this name stands for something else in metrics.csv; choose another")

    def _generation(self) -> None:
        """Check that prompts fit into held-out sequences and continuations into the models."""
        asked = self.study.generation
        if asked is None:
            return
        length = self.study.corpus.block_length
        if asked.prompt_tokens > length:
            self._fail(
                "generation.prompt_tokens",
                f"{asked.prompt_tokens} is more than corpus.block_length ({length}); lower it",
            )
        whole = asked.prompt_tokens + asked.new_tokens
        for name, teacher in self.study.teachers.items():
            if isinstance(teacher, PretrainedHere) and whole > teacher.architecture.positions:
                self._fail(
                    "generation.new_tokens",
                    f"prompt and continuation have {whole} tokens, teachers.{name} reads "
                    f"{teacher.architecture.positions} (architecture.positions); lower it, or set "
                    f"generation: null",
                )

    def _efficiency(self) -> None:
        """Check that what is read and written when speed is measured fits into the teachers."""
        asked = self.study.evaluation.efficiency
        if asked is None:
            return
        sizes, whole = asked.batch_sizes, asked.prompt_tokens + asked.new_tokens
        if len(set(sizes)) != len(sizes):
            self._fail("evaluation.efficiency.batch_sizes", "a size stands here twice; remove one")
        for name, teacher in self.study.teachers.items():
            if isinstance(teacher, PretrainedHere) and whole > teacher.architecture.positions:
                self._fail(
                    "evaluation.efficiency.new_tokens",
                    f"{whole} tokens are read and written, teachers.{name} has "
                    f"{teacher.architecture.positions} (architecture.positions); lower it",
                )

    def _task(self, name: str) -> None:
        task = self.study.tasks[name]
        kind = task.kind or name
        key = f"tasks.{name}.kind" if task.kind else f"tasks.{name}"
        if isinstance(task, LmEvalTask):
            self._stock_task(name, key, kind, task.fewshot)
            return
        if kind not in KINDS:
            if not isinstance(task, FileTask | HubTask):
                self._fail(key, f"unknown task; use one of {', '.join(KINDS)}, or say its kind")
            self._stock_task(name, key, kind)
        corpus = self.study.corpus
        if isinstance(task, ToyTask):
            if not isinstance(corpus, ToyCorpus):
                self._fail(f"tasks.{name}.source", "toyworld makes rows only for corpus: toyworld")
            made = corpus.continuation_rows if kind == "hellaswag" else corpus.cloze_rows
            if task.rows is not None and task.rows > made:
                self._fail(f"tasks.{name}.rows", f"{task.rows} asked, the corpus makes {made}")
        if isinstance(task, HeldoutTask) and not kind.startswith("cbt_"):
            self._fail(f"tasks.{name}.kind", "held-out stories give cbt_question and cbt_context")

    def _stock_task(self, name: str, key: str, kind: str, fewshot: int | None = None) -> None:
        """Check that lm-eval has a task, that it can be run here, and that its rows can be had."""
        try:
            described = find_task(kind)
        except UserError as error:
            hint = f"; tasks of our own are {', '.join(KINDS)}" if fewshot is None else ""
            self._fail(key, f"{error}{hint}")
        if described.headline is None:
            self._fail(key, f"{kind} has no metric that figures and tables can quote; use another")
        if fewshot is None:
            return
        try:
            check_fewshot(described, fewshot)
        except UserError as error:
            self._fail(f"tasks.{name}.fewshot", str(error))
        try:
            rows = hub_rows(described)
        except UserError as error:
            self._fail(key, str(error))
        if rows.options:
            self._fail(
                key,
                f"{kind} reads its data set with {', '.join(rows.options)}, which is not known "
                f"here; give its rows yourself, with source: file",
            )

    def _arm(self, name: str) -> None:
        arm = self.study.arms[name]
        if name == TEACHER_ARM:
            self._fail(f"arms.{name}", "this name stands for the teacher itself; choose another")
        objective = getattr(arm, "objective", None)
        if objective is not None:
            self._objective(f"arms.{name}.objective", objective, arm)
        if isinstance(arm, HubArm):
            self._reference_row(name, arm)
        if isinstance(arm, IskdArm | OneShotArm | TheseusArm):
            self._replacing(name, arm)
        if isinstance(arm, BaselineArm):
            self._baseline(name, arm)

    def _objective(self, key: str, objective: Objective, arm: Arm) -> None:
        if not objective.next_token + objective.kl + objective.hidden:
            self._fail(key, "every weight is 0, so nothing is learnt; raise one")
        if isinstance(arm, KdArm) and not objective.kl:
            self._fail(f"{key}.kl", "a student that is distilled needs it; give it a weight")
        if isinstance(arm, KdArm | LayerDropArm) and objective.hidden:
            self._fail(
                f"{key}.hidden",
                f"method {arm.method} has fewer blocks than the teacher, whose states after each "
                f"are compared; remove this key",
            )

    def _reference_row(self, name: str, arm: HubArm) -> None:
        key = f"arms.{name}.teacher"
        if arm.teacher not in self.study.teachers:
            known = ", ".join(self.study.teachers)
            self._fail(key, f"{arm.teacher!r} is no teacher; there are: {known}")
        if not isinstance(self.study.teachers[arm.teacher], GivenTeacher):
            self._fail(
                key,
                f"{arm.teacher} is trained here and has a tokenizer of its own, so a model of the "
                f"hub cannot stand beside it; name a teacher of source hub or folder",
            )

    def _baseline(self, name: str, arm: BaselineArm) -> None:
        references = [n for n, a in self.study.arms.items() if isinstance(a, IskdArm)]
        if arm.reference is not None and arm.reference not in references:
            self._fail(
                f"arms.{name}.reference",
                f"{arm.reference!r} is no arm of method iskd; "
                f"there are: {', '.join(references) or 'none'}",
            )
        if arm.reference is None and len(references) != 1:
            self._fail(
                f"arms.{name}.reference",
                f"missing; say which iskd arm is matched ({', '.join(references) or 'add one'})",
            )
        if len(set(arm.steps or [])) != len(arm.steps or []):
            self._fail(f"arms.{name}.steps", "the same step stands here twice; each may stand once")
        for teacher_name, teacher in self.study.teachers.items():
            for step in arm.steps or []:
                if step > step_count(teacher):
                    self._fail(
                        f"arms.{name}.steps",
                        f"step {step} does not exist; {teacher_name} has {step_count(teacher)}",
                    )
            if isinstance(arm, LayerDropArm) and arm.match == "steps":
                last = max(arm.steps or [teacher.headline or step_count(teacher)])
                if last >= block_count(teacher):
                    self._fail(
                        f"arms.{name}.match",
                        f"steps would leave out all {last} blocks of {teacher_name}; use "
                        f"parameters, or match an earlier step",
                    )
            if isinstance(arm, OneShotArm | TheseusArm):
                self._known_order(f"arms.{name}.order", arm.order or teacher.order)
            if isinstance(arm, LayerDropArm) and arm.choose == "reference":
                reference = self.study.arms[arm.reference or references[0]]
                own = reference.order if isinstance(reference, IskdArm) else None
                self._known_order(f"arms.{name}.choose", own or teacher.order)

    def _known_order(self, key: str, order: object) -> None:
        if order == "measured":
            self._fail(
                key,
                "a measured order is found step by step and not known beforehand; use one that is "
                "a list or random",
            )

    def _replacing(self, name: str, arm: IskdArm | OneShotArm | TheseusArm) -> None:
        for teacher_name, teacher in self.study.teachers.items():
            if arm.compact is not None:
                shape = None if isinstance(teacher, GivenTeacher) else teacher.architecture
                self._compact(f"arms.{name}.compact", arm.compact, teacher, shape)
            if isinstance(arm.order, list):
                self._order(f"arms.{name}.order", arm.order, block_count(teacher))
                if len(arm.order) < step_count(teacher):
                    self._fail(
                        f"arms.{name}.order",
                        f"{len(arm.order)} blocks, but {teacher_name} has "
                        f"{step_count(teacher)} steps",
                    )
            if isinstance(arm, IskdArm) and arm.as_published:
                self._published(name, arm, teacher_name, teacher)

    def _published(self, name: str, arm: IskdArm, teacher_name: str, teacher: Teacher) -> None:
        compact = arm.compact or teacher.compact
        if teacher.family not in PUBLISHED_FAMILIES:
            self._fail(
                f"arms.{name}.as_published",
                f"the published code has no family {teacher.family} (teacher {teacher_name}); "
                f"it has {' and '.join(PUBLISHED_FAMILIES)}",
            )
        if compact.recipe != "paper" or compact.initialisation not in (None, "paper"):
            self._fail(
                f"arms.{name}.as_published",
                "the published code has recipe paper and initialisation paper; set both so",
            )
        if arm.objective != Objective() or arm.warm_start:
            self._fail(
                f"arms.{name}.as_published",
                "the published code trains on the next token alone; remove objective and "
                "warm_start",
            )
