"""The parameters of a job that trains, as frozen types, from its parameters to the optimiser.

``iskd.config.schema`` says what a study may ask and what is left out; ``iskd.plan`` merges a
teacher's and an arm's sections into these types, whose fields are a rule's named parameters; the
rule's script reads them back with ``of``. Nothing here has a default of its own but for keys that
are optional in the config, too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

Precision = Literal["float32", "bfloat16"]
Initialisation = Literal["paper", "zero_up", "pca", "least_squares", "teacher", "refit"]
ChangeKind = Literal["attention", "heads", "mlp", "neurons", "block"]
ChoiceKind = Literal["measured", "budgeted"]
"""How recipe ``parts`` chooses: the cheapest change again and again, or all by a program."""
CacheKind = Literal["none", "exact", "sampled"]
"""How a training asks its teacher: each time, or what was recorded: all of it, or draws."""


@dataclass(frozen=True)
class LearningRates:
    """The high rate, of compact blocks, and the low one, of the rest of the model."""

    compact: float
    rest: float


@dataclass(frozen=True)
class TrainingSettings:
    """One fine-tuning run; the fields are the keys of a config's section ``training``."""

    epochs: int
    batch_size: int
    learning_rate: LearningRates
    optimizer: Literal["adam", "adamw"]
    weight_decay: float
    beta2: float
    schedule: Literal["linear", "cosine", "constant"]
    warmup: float
    clip: float | None
    precision: Precision
    sequences: int | None = None
    micro_batch: int | None = None
    checkpointing: bool = False
    compile: bool = False
    fused: bool = False

    def as_parameter(self) -> dict[str, Any]:
        """Give a rule's parameter ``training``.

        A key that came later is left out where it is not set, so that it changes no parameter of
        what was trained before.
        """
        own = asdict(self)
        return own if self.fused else {key: own[key] for key in own if key != "fused"}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Read a rule's parameter ``training``.

        Raises:
            TypeError: a field is missing, or there is one more.
        """
        return cls(**{**given, "learning_rate": LearningRates(**given["learning_rate"])})


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of a loss's terms; the fields are the keys of a config's section ``objective``."""

    next_token: float = 1.0
    kl: float = 0.0
    hidden: float = 0.0
    temperature: float = 1.0
    teacher_precision: Precision = "float32"
    teacher_cache: CacheKind = "none"
    draws: int = 12

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with the teacher, or with what it has said."""
        return bool(self.kl or self.hidden)

    @property
    def recorded(self) -> bool:
        """Whether that is read from what was recorded."""
        return self.teacher_cache != "none"


@dataclass(frozen=True)
class RecordingSettings:
    """The parameters of ``record_teacher``: how a teacher answers, and about which sequences.

    ``temperature`` and ``draws`` are None where all is recorded. ``sequences`` is how many a step
    takes, None for the whole corpus, and ``validation`` how many of its last ones no step takes.
    """

    kind: Literal["exact", "sampled"]
    teacher_precision: Precision
    temperature: float | None
    draws: int | None
    sequences: int | None
    validation: int

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """Read a rule's parameters; those that are no fields of the type are left to others."""
        return cls(**{field.name: params[field.name] for field in fields(cls)})

    @property
    def name(self) -> str:
        """A name for the folder of what is recorded, which differs where any field does."""
        parts: list[object] = [self.kind]
        if self.kind == "sampled":
            heat = str(self.temperature).removesuffix(".0").replace("+", "")
            parts += [f"{self.draws}", f"t{heat}"]
        parts += [self.teacher_precision, self.sequences or "all"]
        if self.validation:
            parts += ["without", self.validation]
        return "_".join(str(part) for part in parts)


@dataclass(frozen=True)
class StartSettings:
    """How a compact block starts.

    ``calibration`` is the number of sequences that a fitted start looks at, 0 for another start.
    """

    initialisation: Initialisation
    calibration: int = 0


@dataclass(frozen=True)
class SizeRequest:
    """How large a compact block shall be.

    What is None follows from ``reduction``, from the size of the block that ``like`` describes, or
    else from the paper's proportions. ``replaced`` is the number of blocks that are replaced once
    the reduction is to be reached; 1 where no reduction is requested. ``published`` keeps the
    published code's defects. ``changes`` are the candidates of recipe ``parts``, and ``choice`` how
    it chooses among them; None otherwise.
    """

    recipe: Literal["paper", "bottleneck", "narrow", "parts"]
    reduction: float | None = None
    width: int | None = None
    heads: int | None = None
    blocks: int | None = None
    mlp: int | None = None
    activation: str | None = None
    published: bool = False
    replaced: int = 1
    like: "SizeRequest | None" = None
    changes: tuple[ChangeKind, ...] | None = None
    choice: ChoiceKind | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Read a rule's parameter ``sizes``.

        Raises:
            TypeError: a field is missing, or there is one more.
        """
        like, changes = given.get("like"), given.get("changes")
        return cls(
            **{
                **given,
                "like": None if like is None else cls.of(like),
                "changes": None if changes is None else tuple(changes),
            }
        )


@dataclass(frozen=True)
class ReplacementSettings:
    """The parameters of every job that replaces blocks.

    ``warm_start`` is the share of the sequences that a compact block learns from alone first,
    ``validation`` the number of sequences that are set aside for measuring.
    """

    training: TrainingSettings
    objective: ObjectiveSettings
    start: StartSettings
    warm_start: float
    validation: int

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """Read a rule's parameters; those that are no fields of the type are left to others."""
        own = {field.name: params[field.name] for field in fields(cls)}
        own["training"] = TrainingSettings.of(own["training"])
        own["objective"] = ObjectiveSettings(**own["objective"])
        own["start"] = StartSettings(**own["start"])
        return cls(**own)


@dataclass(frozen=True)
class StepSettings(ReplacementSettings):
    """The parameters of ``substitute_block``; ``block`` is None where the order is measured."""

    block: int | None
    as_published: bool


@dataclass(frozen=True)
class AtOnceSettings(ReplacementSettings):
    """The parameters of ``substitute_at_once``.

    ``blocks`` is None where they are measured; ``first`` and ``curriculum`` are those of a
    stochastic replacement, None without one.
    """

    blocks: list[int] | None
    first: float | None
    curriculum: float | None


@dataclass(frozen=True)
class TuningSettings:
    """The parameters of every baseline that replaces no block, besides how it is made."""

    training: TrainingSettings
    objective: ObjectiveSettings
    validation: int

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """Read a rule's parameters; those that are no fields of the type are left to others."""
        return cls(
            TrainingSettings.of(params["training"]),
            ObjectiveSettings(**params["objective"]),
            params["validation"],
        )
