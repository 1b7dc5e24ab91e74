"""What the library uses of the object ``snakemake`` that a rule's script finds.

The library does not import Snakemake, so its objects are described by protocols.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol


class NamedItems(Protocol):
    """Items with names: the inputs, parameters or wildcards of a job."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Give names with items."""


class Outputs(Protocol):
    """The files that a rule promises, one of them named ``manifest``."""

    manifest: str

    def __iter__(self) -> Iterator[str]:
        """Give all files."""


class SnakemakeObject(Protocol):
    """The job that Snakemake runs a script for.

    ``rule`` is the rule's name, perhaps changed by a workflow that uses this one as a module;
    ``log`` has the log's path, or nothing.
    """

    rule: str
    params: NamedItems
    input: NamedItems
    output: Outputs
    wildcards: NamedItems
    threads: int
    resources: Any
    log: Any
