"""The checks of a teacher's recorded answers, which are as many files as they need."""

from collections.abc import Iterable, Iterator, Mapping

from iskd.audit.findings import Code, Finding
from iskd.audit.folder import StudyFolder
from iskd.audit.planned import Planned
from iskd.provenance.tensors import (
    ANSWERS_ABOUT,
    PROJECTION,
    TensorsError,
    answer_file,
    tensor_shapes,
)


def beside(names: Iterable[str], planned: Planned) -> set[str]:
    """List the files that such an artifact may have beside those that its rule names."""
    if ANSWERS_ABOUT not in planned.files:
        return set()
    given = set(names)
    numbered = {answer_file(number) for number in range(1, len(given) + 1)}
    return given & (numbered | _projection(planned))


def _projection(planned: Planned) -> set[str]:
    """Name the file that only the first step's hidden states have beside them."""
    exact = planned.request["parameters"]["kind"] == "exact"
    return {PROJECTION} if exact and not planned.inputs.get("earlier") else set()


def check(folder: StudyFolder, plan: Mapping[str, Planned]) -> Iterator[Finding]:
    """Compare how many sequences are answered with what is said."""
    for place, planned in plan.items():
        found = folder.artifacts.get(place)
        if found is None or found.statement is None or ANSWERS_ABOUT not in planned.files:
            continue
        for name in sorted(_projection(planned) - found.statement.files.keys()):
            message = "its rule makes it, and it is not named"
            yield Finding(f"{place}/{name}", Code.WRONG_FILES, message)
        count = 0
        for name in beside(found.statement.files, planned) - {PROJECTION}:
            try:
                count += tensor_shapes(folder.path / place / name)["rows"][0]
            except (OSError, TensorsError, LookupError):
                continue  # what is wrong with it, its digest tells
        said = found.statement.summary.get("sequences")
        if count != said:
            message = f"{count} sequences have an answer there where {said} are said"
            yield Finding(f"{place}/{ANSWERS_ABOUT}", Code.WRONG_FILES, message)
