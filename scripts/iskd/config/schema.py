"""The one schema of a study's config, as typed code.

``workflow/schemas/config.schema.yaml`` is generated from here. Every key has a description, a
default where one makes sense, and no unknown key is accepted. Resources (cores, memory, time) are
the profile's business and have no key here; the GPUs of one training have, because its bits depend
on their number.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from iskd.config.best import with_best
from iskd.settings import CacheKind, ChangeKind, ChoiceKind, Initialisation

# A name becomes a folder below results/: no separators, no dots in front, nothing for a shell.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
# No number of things is larger, and beyond it some library's own limit would end a job.
MOST = 2**31 - 1
Seed = Annotated[int, Field(ge=0, le=MOST)]
HubId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$")
]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
DataFile = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$"),
]
GgufFile = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*\.gguf$", max_length=255)
]
DataFolder = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\$[A-Z][A-Z0-9_]*|[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*)$"
    ),
]

# It is printed: no line ends, nothing that a terminal obeys or that turns the direction of a text.
Line = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"),
]


def scientific(value: object) -> object:
    """Read ``1e-4``, which YAML 1.1 takes for text because it has no dot."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+", value):
        return float(value)
    return value


Positive = Annotated[int, Field(ge=1, le=MOST)]
# Without an order that is a list, a study has as many steps.
Blocks = Annotated[int, Field(ge=1, le=1000)]
# The limits stand before the validator: the other way round they are lost in the JSON schema.
_SCIENTIFIC = BeforeValidator(scientific)
Rate = Annotated[float, Field(gt=0, le=1), _SCIENTIFIC]
Share = Annotated[float, Field(ge=0, lt=1), _SCIENTIFIC]
SplitShare = Annotated[float, Field(gt=0, lt=1), _SCIENTIFIC]
Weight = Annotated[float, Field(ge=0, le=1), _SCIENTIFIC]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False), _SCIENTIFIC]
Temperature = Annotated[float, Field(gt=0, le=1000), _SCIENTIFIC]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _SCIENTIFIC]

FamilyName = Literal["gpt2", "phi", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"]
Recipe = Literal["paper", "bottleneck", "narrow", "parts"]
# Those that are fitted to what the teacher's block does.
FITTED = ("pca", "least_squares", "refit")


class Section(BaseModel):
    """A part of the config: unknown keys are refused, numbers given as text are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LearningRates(Section):
    """The dual learning rate of ISKD."""

    compact: Rate = Field(
        1e-4, description="Learning rate of the block just replaced, and of a student."
    )
    rest: Rate = Field(
        2e-5, description="Learning rate of all other weights, and of a tuned baseline."
    )


class Fitting(Section):
    """How a training is fitted into a device's memory; what is learnt stays the same."""

    micro_batch: Positive | None = Field(
        None,
        description="Sequences that go through the model at once; left out, a whole batch. The "
        "gradients of a batch's parts are added up, so that batch_size stays what it is.",
    )
    checkpointing: bool = Field(
        False,
        description="Keep each block's input only and compute the rest again on the way back: less "
        "memory, about a third more work. For when a micro_batch of 1 does not fit.",
    )
    compile: bool = Field(
        False,
        description="Compile the blocks, for each of their shapes once (torch.compile): faster "
        "after a minute or less, with other roundings. Not with method theseus or fsdp.",
    )
    fused: bool = Field(
        False,
        description="Bring all weights up to date in one pass on a CPU, too (PyTorch's fused "
        "kernel, which a GPU always has): a third of that time, with other roundings.",
    )


class Training(Fitting):
    """One fine-tuning run. The defaults are the published code's for GPT-2."""

    epochs: Positive = Field(1, description="Passes over a step's sequences.")
    sequences: Positive | None = Field(
        None,
        description="Sequences a step trains on, the next ones of the corpus in an order drawn "
        "from the seed, and from its beginning again where it ends; left out, all of them.",
    )
    batch_size: Positive = Field(8, description="Sequences per optimiser step.")
    learning_rate: LearningRates = Field(
        default_factory=LearningRates, description="The high rate and the low one."
    )
    optimizer: Literal["adam", "adamw"] = Field(
        "adam",
        description="adam adds weight decay to the gradient, adamw takes it off the weight.",
    )
    weight_decay: Share = Field(0.0, description="Weight decay of all weights of 2 or more axes.")
    beta2: Share = Field(0.999, description="Decay of Adam's second moment (PyTorch's default).")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rates go on after the warm-up."
    )
    warmup: Share = Field(0.0, description="Share of the optimiser steps spent on warming up.")
    clip: AboveZero | None = Field(1.0, description="Largest gradient norm; null for no clipping.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 trains under autocast with float32 weights."
    )


class LearningRatesOverride(Section):
    """The learning rates that an arm sets differently."""

    compact: Rate | None = Field(None, description="As in the teacher's training settings.")
    rest: Rate | Literal["compact"] | None = Field(
        None,
        description="As in the teacher's training settings; compact: one rate for all weights, the "
        "compact block's.",
    )


class BaselineOverride(Section):
    """Keys of a teacher's training settings that a baseline sets differently.

    Epochs and sequences are not among them: a baseline sees the tokens its reference has seen.
    """

    batch_size: Positive | None = Field(None, description="As in the teacher's settings.")
    learning_rate: LearningRatesOverride | None = Field(
        None, description="The rates this arm sets differently."
    )
    optimizer: Literal["adam", "adamw"] | None = Field(
        None, description="As in the teacher's settings."
    )
    weight_decay: Share | None = Field(None, description="As in the teacher's settings.")
    schedule: Literal["linear", "cosine", "constant"] | None = Field(
        None, description="As in the teacher's settings."
    )
    warmup: Share | None = Field(None, description="As in the teacher's settings.")
    fused: bool | None = Field(None, description="As in the teacher's settings.")


class TrainingOverride(BaselineOverride):
    """Keys of a teacher's training settings that one iskd arm sets differently."""

    epochs: Positive | None = Field(None, description="As in the teacher's settings.")
    sequences: Positive | None = Field(None, description="As in the teacher's settings.")


Mix = dict[Name, SplitShare]
_MIX: Any = Field(
    default_factory=dict,
    description="Texts (names under texts) that are trained on as well, each with its share of the "
    "training sequences: general text against forgetting. The rest is the corpus's own, and so is "
    "all that is held out. The loss on a text that is trained on is not measured.",
)


class ToyCorpus(Section):
    """The embedded world: a corpus and its tasks, made from a seed."""

    source: Literal["toyworld"] = Field(description="The stories are made on the spot.")
    seed: Seed = Field(1, description="Seed of the world and of its stories.")
    stories: Positive = Field(2000, description="Stories to train on.")
    heldout_stories: Positive = Field(
        300, description="Stories kept for the held-out loss and for the tasks."
    )
    cloze_rows: Positive = Field(200, description="Rows of the cloze task in the CBT's form.")
    continuation_rows: Positive = Field(
        200, description="Rows of the continuation task in HellaSwag's form."
    )
    block_length: Annotated[int, Field(ge=8, le=MOST)] = Field(
        128, description="Tokens per sequence."
    )
    mix: Mix = _MIX


class FileCorpus(Section):
    """Stories in local JSONL files, one object with a field `text` per line."""

    source: Literal["files"] = Field(description="The stories are read from data_folder.")
    files: Annotated[list[DataFile], Field(min_length=1)] = Field(
        description="JSONL files in data_folder, read in this order."
    )
    rows: Positive | None = Field(None, description="Take only so many rows from the front.")
    heldout_share: SplitShare = Field(0.1, description="Share of the stories that is held out.")
    seed: Seed = Field(17, description="Seed of the split.")
    block_length: Annotated[int, Field(ge=8, le=MOST)] = Field(
        128, description="Tokens per sequence."
    )
    mix: Mix = _MIX


class HubCorpus(Section):
    """Stories from a data set of the Hugging Face hub, fetched by `prefetch`."""

    source: Literal["hub"] = Field(description="The stories come from the hub.")
    dataset: HubId = Field(description="Id of the data set, for example roneneldan/TinyStories.")
    revision: Commit | None = Field(
        None, description="Commit of the data set (40 digits); left out, prefetch locks it."
    )
    split: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")] = Field(
        "train", description="Split to read."
    )
    rows: Positive | None = Field(None, description="Take only so many rows from the front.")
    heldout_share: SplitShare = Field(0.1, description="Share of the stories that is held out.")
    seed: Seed = Field(17, description="Seed of the split.")
    block_length: Annotated[int, Field(ge=8, le=MOST)] = Field(
        128, description="Tokens per sequence."
    )
    mix: Mix = _MIX


Corpus = Annotated[ToyCorpus | FileCorpus | HubCorpus, Field(discriminator="source")]


class Compact(Section):
    """What replaces a block. Sizes that are left out are found by the recipe."""

    recipe: Recipe = Field(
        "paper",
        description="paper: projections around a small backbone of the same family; bottleneck: "
        "the same without inner position embedding, one wider layer; narrow: no projections, fewer "
        "heads and MLP neurons; parts (methods iskd and one_shot): each step measures "
        "which change of which block costs least by parameter saved, and makes it.",
    )
    changes: Annotated[list[ChangeKind], Field(min_length=1)] | None = Field(
        None,
        description="What recipe parts may do to a block: leave out its attention, its mlp or both "
        "(block), fewer heads, fewer neurons. Left out, all of these.",
    )
    choice: ChoiceKind | None = Field(
        None,
        description="How recipe parts chooses. measured: the change that costs least, one after "
        "the other, each measured in the model as it is by then; budgeted: all of a step at once, "
        "by an integer program over damages measured one by one and over some pairs. Left out, "
        "measured.",
    )
    reduction: SplitShare | None = Field(
        None,
        description="1 - parameters / teacher's at the headline step; the block is made as large "
        "as that allows.",
    )
    width: Positive | None = Field(None, description="Inner hidden size d' (not of narrow).")
    heads: Positive | None = Field(
        None, description="Attention heads of each inner layer (narrow: that are kept)."
    )
    blocks: Positive | None = Field(None, description="Inner layers (not of narrow).")
    mlp: Positive | None = Field(
        None, description="Width of the inner MLPs (narrow: neurons that are kept)."
    )
    activation: Literal["relu", "gelu", "gelu_new", "silu", "linear"] | None = Field(
        None,
        description="Function after the down-projection; left out, relu (paper) or gelu "
        "(bottleneck).",
    )
    initialisation: Initialisation | None = Field(
        None,
        description="How the block starts: paper; zero_up: as a plain skip; pca and least_squares: "
        "from the teacher's activations; teacher (narrow only): the strongest heads and neurons; "
        "refit (parts only): those that write most, refitted to the block's output. "
        "Left out, paper (narrow: teacher, parts: refit).",
    )
    calibration: Positive = Field(
        32, description="Sequences whose activations pca, least_squares and refit look at."
    )


class Objective(Section):
    """What a run is trained to do: a weighted sum."""

    next_token: NotNegative = Field(1.0, description="Weight of the next-token cross-entropy.")
    kl: NotNegative = Field(
        0.0, description="Weight of the forward KL divergence from the teacher's predictions."
    )
    temperature: Temperature = Field(
        1.0, description="Temperature of both sides of that divergence."
    )
    hidden: NotNegative = Field(
        0.0, description="Weight of the normalised squared distance to the teacher's hidden states."
    )
    teacher_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number format of the teacher's weights while it is frozen.",
    )
    teacher_cache: CacheKind = Field(
        "none",
        description="none: the teacher runs beside the student in each step; exact: its last "
        "hidden states are recorded once for all arms, steps and epochs; sampled: tokens drawn "
        "from its distribution are, which are few, and the loss is right on average (arXiv "
        "2503.16870). Not with hidden.",
    )
    draws: Annotated[int, Field(ge=1, le=1024)] = Field(
        12, description="Tokens that sampled draws at each position, with replacement."
    )


class Architecture(Section):
    """Shape of a decoder that is trained here from scratch."""

    blocks: Blocks = Field(description="Transformer blocks.")
    width: Positive = Field(description="Hidden size.")
    heads: Positive = Field(description="Attention heads per block; must divide the width.")
    kv_heads: Positive | None = Field(
        None,
        description="Heads with keys and values of their own, where the family can share them; "
        "left out, all.",
    )
    mlp: Positive | None = Field(None, description="MLP width; left out, 4 times the width.")


class Student(Architecture):
    """Shape of the student of distillation; vocabulary and positions are the teacher's."""


class TeacherArchitecture(Architecture):
    """Shape of a teacher that is trained here from scratch."""

    positions: Annotated[int, Field(ge=8, le=MOST)] = Field(
        description="Longest sequence, in tokens."
    )
    vocabulary: Annotated[int, Field(ge=260, le=MOST)] = Field(
        description="Entries of its own byte-level BPE tokenizer (256 bytes and merges)."
    )
    dropout: Share = Field(0.0, description="Dropout everywhere in the model.")
    initializer_range: Rate = Field(
        0.02, description="Standard deviation of the fresh weights (the library's own is 0.02)."
    )


class Pretraining(Fitting):
    """How a teacher is trained from scratch."""

    seed: Seed = Field(1, description="Seed of its weights and of the order of its data.")
    epochs: Positive = Field(1, description="Passes over the training tokens.")
    batch_size: Positive = Field(8, description="Sequences per optimiser step.")
    learning_rate: Rate = Field(1e-3, description="Highest learning rate.")
    weight_decay: Share = Field(0.01, description="AdamW's weight decay.")
    beta2: Share = Field(
        0.95, description="Decay of AdamW's second moment (as GPT-3, arXiv 2005.14165, B)."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="How the learning rate goes on after the warm-up."
    )
    warmup: Share = Field(0.05, description="Share of the optimiser steps spent on warming up.")
    clip: AboveZero | None = Field(1.0, description="Largest gradient norm; null for no clipping.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 trains under autocast with float32 weights."
    )


Licence = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]
Order = list[Annotated[int, Field(ge=0)]] | Literal["random", "measured"]
_ORDER = (
    "Which block when: a list of block indices, random (drawn from the seed), or measured (before "
    "each step, the block whose replacement raises the loss on validation text least)."
)

_LEFT_OUT = "Left out, it is read from the model's config."


class TeacherMethod(Section):
    """What is done to a teacher, wherever it comes from."""

    family: FamilyName = Field(description="Architecture family of the model.")
    compact: Compact = Field(
        default_factory=Compact, description="What replaces a block, unless an arm says otherwise."
    )
    order: Order = Field(description=_ORDER)
    steps: Positive | None = Field(
        None, description="Substitutions to make; left out, as many as the order lists."
    )
    headline: Positive | None = Field(
        None, description="The step the tables report; left out, the last one."
    )
    training: Training = Field(
        default_factory=Training, description="Fine-tuning after each substitution."
    )
    save_precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Number format of the weights that are published; left out, the teacher's own. "
        "What is trained on stays float32.",
    )
    student: Student | None = Field(
        None,
        description="Shape of a student from scratch; left out, the teacher's width and as many "
        "blocks as the reference's size allows.",
    )
    gpus: Positive = Field(
        1,
        description="GPUs that each training of this model takes, with one process on each. They "
        "share every batch, so batch sizes must be divisible by it.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="How several GPUs share the work. ddp: each holds the whole model; fsdp: each "
        "holds a part of the weights, gradients and optimiser states.",
    )


class PretrainedHere(TeacherMethod):
    """A teacher that a rule of this workflow trains on the corpus."""

    source: Literal["pretrain"] = Field(description="The teacher is trained on the corpus.")
    architecture: TeacherArchitecture = Field(description="Shape of the teacher.")
    pretraining: Pretraining = Field(
        default_factory=Pretraining, description="How the teacher is trained."
    )


class GivenTeacher(TeacherMethod):
    """A model that is there already. Of its shape, only the config's checks want to know.

    What `FILLED_IN` names may be left out of the file: it is read from the model.
    """

    family: FamilyName = Field(
        description=f"Architecture family of the model. {_LEFT_OUT}",
        json_schema_extra={"left_out": True},
    )
    order: Order = Field(
        description=f"{_ORDER} Left out, from the middle block outwards.",
        json_schema_extra={"left_out": True},
    )
    blocks: Blocks = Field(
        description=f"Transformer blocks of the model (checked against it). {_LEFT_OUT}",
        json_schema_extra={"left_out": True},
    )
    steps: Positive | None = Field(
        None,
        description="Substitutions to make; left out, as many as an order that is a list has, "
        "else half of the blocks for a reduction of 0.3 and in that proportion, all without one.",
    )
    licence: Licence | None = Field(
        None,
        description="Licence of the model, as the hub names it (apache-2.0), for the cards of what "
        "is made of it. Left out, it is read from a folder's README.md or GGUF file.",
    )


class HubTeacher(GivenTeacher):
    """A pretrained model from the Hugging Face hub, fetched by `prefetch`."""

    source: Literal["hub"] = Field(description="The teacher comes from the hub.")
    model: HubId = Field(description="Id of the model, for example openai-community/gpt2.")
    revision: Commit | None = Field(
        None, description="Commit of the model (40 digits); left out, prefetch locks it."
    )


class FolderTeacher(GivenTeacher):
    """A pretrained model in a local folder: as `save_pretrained` writes it, or a GGUF file."""

    source: Literal["folder"] = Field(description="The teacher lies in data_folder.")
    folder: DataFile = Field(
        description="Its folder in data_folder: config, tokenizer and weights in safetensors; or a "
        "GGUF file."
    )
    gguf: GgufFile | None = Field(
        None,
        description="The GGUF file in that folder. It is dequantised once, to bfloat16 or to "
        "save_precision; its tokenizer and chat template come along.",
    )
    base_model: HubId | None = Field(
        None,
        description="Id on the hub of the model in the folder, for the same cards. Left out, it is "
        "read from config.json, the GGUF file or README.md.",
    )
    files: Annotated[list[DataFile], Field(min_length=1)] = Field(
        description="Files of it that are read. Left out, those a model in safetensors has.",
        json_schema_extra={"left_out": True},
    )


Teacher = Annotated[PretrainedHere | HubTeacher | FolderTeacher, Field(discriminator="source")]
GIVEN = ("hub", "folder")
"""Sources of teachers that are there already."""
FILLED_IN = ("family", "blocks", "order", "steps", "files", "licence", "base_model")
"""Keys of such teachers that may be left out of a file: see `iskd.config.model_defaults`."""

TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]*$")]


class TaskBase(Section):
    """What every task says, wherever its rows come from."""

    kind: TaskName | None = Field(
        None,
        description="How rows are asked and scored: cbt_question, cbt_context, hellaswag or a task "
        "of lm-eval; left out, the task's own name.",
    )
    rows: Positive | None = Field(
        None,
        description="Rows to evaluate on, drawn from the seed; left out, or where there are fewer, "
        "all of them.",
    )
    seed: Seed = Field(17, description="Seed of that draw.")


class ToyTask(TaskBase):
    """Rows the embedded world makes from its held-out stories."""

    source: Literal["toyworld"] = Field(description="The rows are made with the corpus.")


class HeldoutTask(TaskBase):
    """A cloze in the CBT's form, made from the corpus's held-out stories."""

    source: Literal["heldout"] = Field(description="The rows are made from held-out stories.")
    rows: Positive = Field(200, description="Rows to make.")


class FileTask(TaskBase):
    """Rows in a local JSONL file, in the benchmark's own schema."""

    source: Literal["file"] = Field(description="The rows are read from data_folder.")
    file: DataFile = Field(description="JSONL file in data_folder.")


class HubTask(TaskBase):
    """Rows from a data set of the Hugging Face hub, fetched by `prefetch`."""

    source: Literal["hub"] = Field(description="The rows come from the hub.")
    dataset: HubId = Field(description="Id of the data set, for example Rowan/hellaswag.")
    config: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None, description="Configuration of the data set, where it has several."
    )
    revision: Commit | None = Field(
        None, description="Commit of the data set (40 digits); left out, prefetch locks it."
    )
    split: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")] = Field(
        description="Split to evaluate on."
    )


class LmEvalTask(TaskBase):
    """A task exactly as lm-eval has it, its rows too: fetched by `prefetch`."""

    source: Literal["lm_eval"] = Field(
        description="lm-eval's own task and the data set that it names."
    )
    revision: Commit | None = Field(
        None, description="Commit of that data set (40 digits); left out, prefetch locks it."
    )
    fewshot: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="Examples in each prompt, drawn from the seed."
    )


Task = Annotated[
    ToyTask | HeldoutTask | FileTask | HubTask | LmEvalTask, Field(discriminator="source")
]


class ToyText(Section):
    """Stories of the embedded world that are no part of the corpus."""

    source: Literal["toyworld"] = Field(description="The stories are made on the spot.")
    seed: Seed = Field(2, description="Seed of the stories.")
    stories: Positive = Field(200, description="Stories to make.")
    words: Literal["other", "corpus"] = Field(
        "other",
        description="other: names and nouns that the embedded corpus does not have; corpus: its "
        "own.",
    )


class FileText(Section):
    """Texts in local JSONL files, one object with a field `text` per line."""

    source: Literal["files"] = Field(description="The texts are read from data_folder.")
    files: Annotated[list[DataFile], Field(min_length=1)] = Field(
        description="JSONL files in data_folder, read in this order."
    )
    rows: Positive | None = Field(
        None, description="Texts to measure on, drawn from the seed; left out, all of them."
    )
    seed: Seed = Field(17, description="Seed of that draw.")


class HubText(Section):
    """Texts from a data set of the Hugging Face hub, fetched by `prefetch`."""

    source: Literal["hub"] = Field(description="The texts come from the hub.")
    dataset: HubId = Field(
        description="Id of a data set with a field `text`, for example Salesforce/wikitext."
    )
    config: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None, description="Configuration of the data set, where it has several."
    )
    revision: Commit | None = Field(
        None, description="Commit of the data set (40 digits); left out, prefetch locks it."
    )
    split: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")] = Field(
        description="Split to measure on; it is fetched as a whole."
    )
    rows: Positive | None = Field(
        None, description="Texts to measure on, drawn from the seed; left out, all of them."
    )
    seed: Seed = Field(17, description="Seed of that draw.")


Text = Annotated[ToyText | FileText | HubText, Field(discriminator="source")]


class TrainedArm(Section):
    """What all arms share that train something."""

    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None,
        description="Run this arm with these of the study's seeds only, the first one among them; "
        "left out, with all.",
    )


class Replacing(TrainedArm):
    """What all arms that put compact blocks into the teacher can set."""

    recipe: Literal["best"] | None = Field(
        None,
        description="best: fills in what is left out of compact, objective, training and "
        "warm_start. Method iskd without an order: recipe parts, and one rate for all weights; "
        "else narrow blocks fitted by least squares, in a measured order where none is given.",
    )
    compact: Compact | None = Field(
        None,
        description="What replaces a block in this arm; left out, as the teacher's section says. "
        "Without sizes and reduction it is as large as the teacher's.",
    )
    objective: Objective = Field(
        default_factory=Objective, description="What this arm is trained to do."
    )
    warm_start: Share = Field(
        0.0,
        description="Share of the tokens on which a new block first learns the replaced block's "
        "output, on the teacher's activations and alone.",
    )
    order: Order | None = Field(None, description="Left out, the teacher's. " + _ORDER)

    @model_validator(mode="before")
    @classmethod
    def _best(cls, arm: Any) -> Any:
        return with_best(arm)


class IskdArm(Replacing):
    """Iterative substitution: one block, one fine-tuning, then the next."""

    method: Literal["iskd"] = Field(description="Replace block after block.")
    validation: Positive = Field(
        32,
        description="Sequences that a measured order is measured on; they are taken from the end "
        "of the training text, and this arm does not train on them.",
    )
    as_published: bool = Field(
        False,
        description="Reproduce the published code's defects: the inner attention mask, and blocks "
        "that stay frozen because their number begins alike.",
    )
    training: TrainingOverride = Field(
        default_factory=TrainingOverride, description="What this arm trains differently."
    )


class BaselineArm(TrainedArm):
    """What the arms share that are compared with an ISKD arm, at its parameters and tokens."""

    reference: Name | None = Field(
        None, description="The iskd arm whose parameters and tokens are matched."
    )
    steps: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        None, description="Steps of the reference to match; left out, the headline step."
    )
    training: BaselineOverride = Field(
        default_factory=BaselineOverride, description="What this arm trains differently."
    )


class OneShotArm(BaselineArm, Replacing):
    """All blocks replaced at once, then one fine-tuning on as many tokens."""

    method: Literal["one_shot"] = Field(description="Replace all blocks at once.")


class TheseusArm(BaselineArm, Replacing):
    """Stochastic replacement: in each training step a block is the old one or the new one."""

    method: Literal["theseus"] = Field(
        description="Draw in each step which blocks are replaced already (arXiv 2002.02925)."
    )
    first: Weight = Field(0.5, description="Probability of the new block at the start.")
    curriculum: Weight = Field(
        0.6, description="Share of the optimiser steps over which that rises to 1."
    )


class L1Arm(BaselineArm):
    """Structured pruning by L1 norm to the same parameter count, then tuning."""

    method: Literal["l1"] = Field(description="Remove heads and MLP neurons of the lowest L1 norm.")
    objective: Objective = Field(
        default_factory=Objective, description="What this arm is trained to do."
    )


_DISTILLED = {"next_token": 0.5, "kl": 0.5}


class KdArm(BaselineArm):
    """A smaller student, trained with the teacher's predictions."""

    method: Literal["kd"] = Field(description="Distil the teacher into a student.")
    start: Literal["scratch", "alternate"] = Field(
        "scratch",
        description="scratch: fresh weights; alternate: blocks of the teacher, evenly spread, as "
        "many as the reference's size allows.",
    )
    objective: Objective = Field(
        default_factory=lambda: Objective(next_token=_DISTILLED["next_token"], kl=_DISTILLED["kl"]),
        description="What this student is trained to do; left out, next_token and kl weigh 0.5.",
    )

    @model_validator(mode="before")
    @classmethod
    def _distilled(cls, arm: Any) -> Any:
        """Keep the default of a key that is left out: a student without it is not distilled."""
        if isinstance(arm, dict) and isinstance(arm.get("objective"), dict):
            return {**arm, "objective": {**_DISTILLED, **arm["objective"]}}
        return arm


class LayerDropArm(BaselineArm):
    """Blocks are left out, by default those of lowest influence, then the rest is tuned."""

    method: Literal["layer_drop"] = Field(
        description="Leave out the blocks that change the hidden states least (arXiv 2403.03853)."
    )
    match: Literal["steps", "parameters"] = Field(
        "parameters",
        description="steps: as many blocks as the reference has replaced; parameters: as few as "
        "give its size, the last one narrowed to fit.",
    )
    choose: Literal["influence", "reference"] = Field(
        "influence",
        description="influence: the blocks of lowest influence go; reference: those that the "
        "reference replaces, so that the difference is what its new blocks earn.",
    )
    calibration: Positive = Field(
        16,
        description="Sequences on which the blocks' influence is measured and a refit is fitted.",
    )
    gap: Literal["none", "refit"] = Field(
        "none",
        description="refit: before training, the MLP before each gap is refitted, in closed form, "
        "to what the blocks left out did (compare ReplaceMe, arXiv 2505.02819).",
    )
    objective: Objective = Field(
        default_factory=Objective, description="What this arm is trained to do."
    )


class TeacherTunedArm(BaselineArm):
    """The control: the teacher itself, whole, tuned on the same tokens."""

    method: Literal["teacher_tuned"] = Field(description="Tune the teacher, replace nothing.")


class HubArm(Section):
    """A row for comparison: a finished model from the Hugging Face hub, evaluated as it is."""

    method: Literal["hub"] = Field(description="Evaluate a finished model of the hub.")
    teacher: Name = Field(description="The teacher in whose table and figure it stands.")
    model: HubId = Field(description="Id of the model, for example distilbert/distilgpt2.")
    revision: Commit | None = Field(
        None, description="Commit of the model (40 digits); left out, prefetch locks it."
    )


Arm = Annotated[
    IskdArm | OneShotArm | TheseusArm | L1Arm | KdArm | LayerDropArm | TeacherTunedArm | HubArm,
    Field(discriminator="method"),
]


class Bootstrap(Section):
    """How intervals of differences and ratios between models are found."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000,
        description="Draws of the sources of a task's items; 2000 leave the ends of an interval "
        "uncertain by about a twentieth of a standard error.",
    )
    seed: Seed = Field(17, description="Seed of these draws.")


class Efficiency(Section):
    """How speed and memory are measured, in one job for a model and its teacher in turn."""

    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1, 32], description="Texts at once, each measured on its own."
    )
    prompt_tokens: Positive = Field(128, description="Tokens read before the first is written.")
    new_tokens: Positive = Field(
        64, description="Tokens written one after the other, with a KV cache."
    )
    repeats: Annotated[int, Field(ge=3, le=MOST)] = Field(
        7, description="Measurements; their median counts, the smallest and largest are its range."
    )
    warmup: Positive = Field(2, description="Measurements before these, which do not count.")
    draft_tokens: Positive | None = Field(
        None,
        description="Have each model draft for its teacher, too (speculative decoding), so many "
        "tokens at a time, one text at once; left out, not tried.",
    )
    seed: Seed = Field(17, description="Seed of the tokens that are read.")


class Evaluation(Section):
    """How checkpoints are evaluated."""

    batch_size: Positive = Field(
        16,
        description="Texts of the longest length that a forward pass has room for: fixed, because "
        "scores move with it in their last digits.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the weights during evaluation."
    )
    steps: Literal["all", "headline"] | Annotated[list[Positive], Field(min_length=1)] = Field(
        "all",
        description="Which steps of the iskd arms are evaluated: all, the headline step, or those "
        "of a list.",
    )
    bootstrap: Bootstrap = Field(
        default_factory=Bootstrap,
        description="How intervals of differences and ratios between models are found.",
    )
    efficiency: Efficiency | None = Field(
        default_factory=Efficiency,
        description="How speed and memory are measured, for the first seed's models at the "
        "headline step; null for not at all.",
    )


class Generation(Section):
    """Continuations of held-out text, by the teacher and by each arm at the headline step."""

    prompts: Positive = Field(
        16, description="Held-out sequences, drawn from the seed, whose beginnings are continued."
    )
    prompt_tokens: Positive = Field(32, description="Tokens of such a beginning.")
    new_tokens: Annotated[int, Field(ge=8, le=MOST)] = Field(
        64, description="Tokens of a continuation."
    )
    temperature: NotNegative = Field(
        1.0, description="Temperature of the draw; 0 takes the likeliest token each time (greedy)."
    )
    top_p: Rate = Field(
        1.0,
        description="Draw from the likeliest tokens that have this probability together "
        "(arXiv 1904.09751).",
    )
    seed: Seed = Field(17, description="Seed of the prompts and of the continuations.")


class Overlap(Section):
    """What of the tasks stands in the corpus that is trained on."""

    n: Positive = Field(
        13,
        description="Words in a row that an item and the corpus must share to count (13 as for "
        "GPT-3, arXiv 2005.14165, C).",
    )


class Claim(Section):
    """A number that was published elsewhere, to be shown beside ours."""

    teacher: Name = Field(description="The teacher it is about.")
    task: Name = Field(description="The task.")
    metric: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")] = Field(
        description="The task's metric, for example acc_norm."
    )
    reduction: Share = Field(description="1 - parameters / teacher's parameters, a fraction.")
    retention: NotNegative = Field(description="Score / teacher's score, a fraction.")
    source: Annotated[Line, Field(min_length=1, max_length=80)] = Field(
        description="Where it was published, as a reader would look it up."
    )


class Tracking(Section):
    """What shows trainings while they run; it decides on no result, and may be changed any time."""

    report_to: list[Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=[],
        description="Trackers, by the names that transformers has for them. Each needs its package "
        "and writes into results/<study>/tracking, without a network.",
    )

    @property
    def trackers(self) -> list[str]:
        """Those of the list that are trackers."""
        return [name for name in self.report_to if name != "none"]


class Study(Section):
    """A study: one config file's worth of runs."""

    study: Name = Field(description="Name of the study: its folder below results/.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        default=[17], description="Every arm is run once per seed."
    )
    data_folder: DataFolder | None = Field(
        None,
        description="Where local files lie: a folder below the working directory, or $NAME for "
        "the folder that the environment variable NAME holds.",
    )
    corpus: Corpus = Field(description="The text that is trained on.")
    teachers: Annotated[dict[Name, Teacher], Field(min_length=1)] = Field(
        description="The models that are made smaller, by name."
    )
    arms: Annotated[dict[Name, Arm], Field(min_length=1)] = Field(
        description="The methods that are compared, by name."
    )
    tasks: Annotated[dict[Name, Task], Field(min_length=1)] = Field(
        description="What the models are asked, by name."
    )
    claims: list[Claim] = Field(
        default=[],
        description="Published numbers that figures and tables show beside ours, as claimed.",
    )
    texts: dict[Name, Text] = Field(
        default={},
        description="Texts beside the corpus on which the loss is measured too, by name: what a "
        "model forgot while it was tuned.",
    )
    generation: Generation | None = Field(
        default_factory=Generation,
        description="Continuations to look at and to measure; null for none.",
    )
    overlap: Overlap = Field(
        default_factory=Overlap, description="How the tasks' overlap with the corpus is measured."
    )
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="How checkpoints are evaluated."
    )
    tracking: Tracking = Field(
        default_factory=Tracking, description="Where trainings are shown while they run."
    )


def json_schema() -> dict[str, Any]:
    """Give the JSON schema (draft 2020-12) of a study's config."""
    schema = Study.model_json_schema()
    for section in schema["$defs"].values():
        left_out = [
            key for key, spec in section.get("properties", {}).items() if spec.pop("left_out", None)
        ]
        if left_out:
            section["required"] = [key for key in section["required"] if key not in left_out]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
