"""The lint step for docstrings finds what it is there for."""

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_docstrings.py"
FUNCTION = '''"""One sentence."""


def f(given: int) -> None:
    """Do it.

    Args:
        given: what.

    Raises:
        ValueError: always.
    """
    raise ValueError
'''


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("        given: what.", "        other: what.", "no argument other"),
        ("        ValueError: always.", "        always.", "raises ValueError"),
        ('"""One sentence."""', "", "one sentence"),
        ("One sentence.", "no sentence", "one sentence"),
        ("One sentence.", "One\nof\nthree lines.", "one sentence"),
        # An error that is caught on the spot does not leave the function.
        (
            '        ValueError: always.\n    """\n    raise ValueError',
            '        always.\n    """\n    try:\n        raise ValueError\n'
            "    except ValueError:\n        pass",
            None,
        ),
    ],
)
def test_a_docstring_that_does_not_fit_the_code_is_found(
    old: str, new: str, fault: str | None
) -> None:
    assert old in FUNCTION
    faults = runpy.run_path(str(TOOL))["faults"]
    found = [message for _, message in faults(FUNCTION.replace(old, new, 1))]
    assert len(found) == (fault is not None)
    assert all(str(fault) in message for message in found)
