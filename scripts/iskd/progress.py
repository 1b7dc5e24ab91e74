"""How far a job is: a bar on a terminal."""

import sys
from typing import NoReturn

from tqdm import tqdm


def bar(total: int, what: str, *, done: int = 0, unit: str = "step") -> "tqdm[NoReturn]":
    """Open a bar with an estimate on a terminal; elsewhere one that shows nothing.

    Args:
        total: what will have been done at the end.
        what: what is shown in front of it.
        done: what was done before.
        unit: name of one of them.
    """
    # Several jobs at a time share the terminal's last line; none leaves its bar behind.
    return tqdm(
        total=total,
        desc=what,
        initial=done,
        unit=unit,
        file=sys.stderr,
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )
