"""All of a paper's files in one zip."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

# The earliest time that a zip can hold: the archive says nothing about when it was made.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_README = """\
What the study {study} gave.

metrics.csv        every number that a second run has again, to the byte
measurements.csv   what clocks and sensors said: speed, memory, hours, energy
figure_*           pdf for a paper, svg and png for a screen, csv with the numbers drawn
table_*            tex (package booktabs), md and html for readers, csv with the raw numbers
numbers*.tex       a macro for every number: \\input it and write the number by its name

{files}
"""


def write_bundle(files: Mapping[str, Path], study: str, path: Path) -> None:
    """Write the files, by the names they get in it, and a README; the same files, the same bytes.

    Args:
        files: paths by name; a name may have folders in it.
        study: the study's name, which is the folder that everything lies in.
        path: the zip.
    """
    listed = "\n".join(sorted(files))
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, f"{study}/README.txt", _README.format(study=study, files=listed).encode())
        for name in sorted(files):
            _add(archive, f"{study}/{name}", files[name].read_bytes())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    # What is compressed depends on the version of zlib; text this small need not be.
    archive.writestr(entry, data, zipfile.ZIP_STORED)
