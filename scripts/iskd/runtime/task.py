"""What the library uses of the object ``snakemake`` that a rule's script finds.

The library does not import Snakemake, so its objects are described by protocols.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class NamedItems(Protocol):
    """Items with names: the inputs, parameters or wildcards of a job."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Give names with items."""


class Outputs(Protocol):
    """The files that a rule promises, one of them named ``manifest``."""

    @property
    def manifest(self) -> str:
        """The manifest of the artifact."""

    def __iter__(self) -> Iterator[str]:
        """Give all files."""


class Resources(Protocol):
    """The resources that a job was given."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """Give the amount of a resource."""


class SnakemakeObject(Protocol):
    """The job that Snakemake runs a script for."""

    @property
    def rule(self) -> str:
        """The rule's name, perhaps changed by a workflow that uses this one as a module."""

    @property
    def params(self) -> NamedItems:
        """What the job computes, and how it is tracked."""

    @property
    def input(self) -> NamedItems:
        """The files that are read: a path or a list of paths for each name."""

    @property
    def output(self) -> Outputs:
        """The files that are to be written."""

    @property
    def wildcards(self) -> NamedItems:
        """The parts of the outputs' paths that vary."""

    @property
    def threads(self) -> int:
        """The cores that are set aside."""

    @property
    def resources(self) -> Resources:
        """The resources, such as the number of the attempt."""

    @property
    def log(self) -> Sequence[str]:
        """The path of the log; empty where the rule has none."""
