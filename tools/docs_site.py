"""Lay out the repository's pages for mkdocs: the same files in the same folders, none written anew.

Files that pages link to, such as pictures, come along. ``make site`` calls it.
"""

import re
import shutil
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
PAGES = TOP / "build" / "pages"
TEXTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("config/README.md", "workflow/documentation.md"),
)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def pages() -> list[str]:
    """List the repository's pages, by their path in it."""
    return [*TEXTS, *(f"docs/{path.name}" for path in sorted((TOP / "docs").glob("*.md")))]


def linked(page: str) -> list[str]:
    """List the files of the repository that a page links to, by their path in it."""
    text = (TOP / page).read_text(encoding="utf-8")
    named = [target for target in _LINK.findall(text) if "://" not in target]
    found = [(TOP / page).parent.joinpath(target).resolve() for target in named]
    return sorted({path.relative_to(TOP).as_posix() for path in found if path.is_file()})


def lay_out(folder: Path) -> None:
    """Copy all pages, and the files that they link to, into a folder.

    Args:
        folder: is emptied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted({*pages(), *(file for page in pages() for file in linked(page))}):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TOP / file, folder / file)


if __name__ == "__main__":
    lay_out(PAGES)
