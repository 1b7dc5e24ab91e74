"""Rules about the blocks of models, wherever a config speaks of some."""

from iskd.config.rules import Rules
from iskd.config.schema import FITTED, Architecture, Compact, GivenTeacher, Teacher

# What a head's size must be a multiple of, by the share of it that the family's fresh configs
# rotate in pairs: half in Phi, a quarter in GPT-NeoX, all in Llama and its relatives.
HEAD_SIZE_MULTIPLE = {"phi": 4, "gpt_neox": 8, "llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 2}
# Families whose heads never share keys and values.
OWN_KEYS = ("gpt2", "gpt_neox")


class BlockRules(Rules):
    """What both teachers and arms say about blocks."""

    def order(self, key: str, order: list[int], blocks: int) -> None:
        """Check a list of blocks of a model."""
        for index in order:
            if index >= blocks:
                self.fail(
                    key, f"block {index} does not exist; the model has blocks 0 to {blocks - 1}"
                )
        twice = {i for i in order if order.count(i) > 1}
        if twice:
            self.fail(
                key, f"block {min(twice)} stands here twice; a block can be replaced only once"
            )
        if not order:
            self.fail(key, "no block is named; name at least one")

    def shapes(self, key: str, teacher: Teacher) -> None:
        """Check the sizes of a teacher that is made here, and of its student."""
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
            multiple = HEAD_SIZE_MULTIPLE.get(teacher.family, 1)
            if width // heads % multiple:
                self.fail(
                    f"{key}.{part}.heads",
                    f"{heads} makes heads of size {width // heads}; {teacher.family} needs a "
                    f"multiple of {multiple}",
                )
            if kv_heads is None:
                continue
            if teacher.family in OWN_KEYS:
                self.fail(
                    f"{key}.{part}.kv_heads",
                    f"{teacher.family} gives every head keys of its own; remove this key",
                )
            if heads % kv_heads:
                self.fail(f"{key}.{part}.kv_heads", f"{kv_heads} does not divide heads ({heads})")
        made_here = None if isinstance(teacher, GivenTeacher) else teacher.architecture
        self.compact(f"{key}.compact", teacher.compact, teacher, made_here)

    def _heads(self, key: str, width: int, heads: int) -> None:
        if width % heads:
            self.fail(key, f"{heads} does not divide the width {width}")

    def compact(
        self, key: str, compact: Compact, teacher: Teacher, shape: Architecture | None
    ) -> None:
        """Check what replaces a block; what needs the model itself is checked by the plan."""
        given = {k for k in ("width", "heads", "blocks", "mlp") if getattr(compact, k) is not None}
        if compact.recipe == "parts":
            self._parts(key, compact, given)
            return
        self._not_parts(key, compact)
        narrow = compact.recipe == "narrow"
        for foreign in sorted(given & {"width", "blocks"} if narrow else set()):
            self.fail(f"{key}.{foreign}", "recipe narrow keeps width and depth; remove this key")
        if narrow and len(given) == 1:
            self.fail(f"{key}.{given.pop()}", "recipe narrow needs heads and mlp, or neither")
        if narrow and compact.activation is not None:
            self.fail(f"{key}.activation", "recipe narrow keeps the model's own; remove this key")
        decides = ("heads" if narrow else "width") in given
        if decides and compact.reduction is not None:
            self.fail(f"{key}.reduction", "sizes are given as well; leave out the one or the other")
        if narrow and compact.initialisation == "pca":
            self.fail(
                f"{key}.initialisation", "pca sets projections and narrow has none; use teacher"
            )
        if not narrow and compact.initialisation == "teacher":
            self.fail(f"{key}.initialisation", "teacher keeps heads and neurons: use recipe narrow")
        if narrow or compact.width is None:
            return
        if compact.initialisation in FITTED and shape is not None and compact.width > shape.width:
            self.fail(
                f"{key}.width",
                f"{compact.width} is more than the model's {shape.width}, so "
                f"{compact.initialisation} has no projection for it; lower it",
            )
        if compact.heads is None:
            return
        self._heads(f"{key}.heads", compact.width, compact.heads)
        # Only a fetched model may rotate another share of its heads than the family's own.
        multiple = HEAD_SIZE_MULTIPLE.get(teacher.family, 1) if shape is not None else 1
        if compact.width // compact.heads % multiple:
            self.fail(
                f"{key}.heads",
                f"{compact.heads} makes heads of size {compact.width // compact.heads}; "
                f"{teacher.family} needs a multiple of {multiple}",
            )

    def _parts(self, key: str, compact: Compact, given: set[str]) -> None:
        for foreign in sorted(given):
            self.fail(f"{key}.{foreign}", "recipe parts finds sizes by itself; remove this key")
        if compact.activation is not None:
            self.fail(f"{key}.activation", "recipe parts keeps the model's own; remove this key")
        if compact.initialisation not in (None, "refit"):
            self.fail(f"{key}.initialisation", "recipe parts starts with refit; remove this key")

    def _not_parts(self, key: str, compact: Compact) -> None:
        for foreign in ("changes", "choice"):
            if getattr(compact, foreign) is not None:
                self.fail(
                    f"{key}.{foreign}",
                    f"recipe {compact.recipe} has no {foreign}; remove this key",
                )
        if compact.initialisation == "refit":
            self.fail(f"{key}.initialisation", "refit is how recipe parts starts; use that recipe")

    def _long_enough(self, key: str, positions: int) -> None:
        length = self.study.corpus.block_length
        if positions < length:
            self.fail(
                key,
                f"{positions} is less than corpus.block_length ({length}); "
                f"raise the one or lower the other",
            )
