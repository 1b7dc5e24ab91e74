"""Tables as LaTeX that fits a page."""

import re
from collections.abc import Iterator, Sequence

from iskd.paper.columns import Column, groups_of, own_head, share_out
from iskd.paper.formats import with_unit

# Widths in digits of the font. The text of a two-column A4 paper is 455 pt wide, and a digit at
# \footnotesize and \scriptsize of an 11 pt document 4.6 pt and 4.25 pt.
_SIZES = ((r"\footnotesize", 97.0), (r"\scriptsize", 105.0))
_COLUMN_GAP = 1.45
_WIDTHS = {**dict.fromkeys(".,[]:;'|!il ", 0.6), **dict.fromkeys("±×–%mMwW", 1.6)}
_MOST_LINES = 44
"""Lines of a table that fit on one page with its caption."""

_TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    # Right after the end of a row a bracket would open that row's optional argument.
    "[": "{[}",
    "]": "{]}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
}


def escape_tex(text: str) -> str:
    """Escape what LaTeX takes for markup, and set signs as a formula would."""
    escaped = "".join(_TEX_SPECIAL.get(character, character) for character in text)
    # A hyphen before a digit is a minus sign where a number starts.
    escaped = re.sub(r"(^|[ }])-(?=\d)", r"\g<1>$-$", escaped)
    # 1.5e+12, where it is a number on its own
    return re.sub(
        r"(?<![\w.])(\d(?:\.\d+)?)e([+-]\d+)\b",
        lambda found: rf"{found[1]}$\times10^{{{int(found[2])}}}$",
        escaped,
    )


def tex_table(columns: Sequence[Column], breaks: frozenset[int], caption: str, label: str) -> str:
    """Give a table as one or more `table*`; they need the package booktabs.

    Columns that do not fit side by side go below one another, and what does not fit on a page goes
    into a further float.
    """
    size, panels = _panels(columns)
    floats = _floats(panels, breaks, len(columns[0].cells) if columns else 0)
    texts = []
    for number, parts in enumerate(floats):
        shown = caption if number == 0 else "Continued from the table before."
        lines = [
            r"\begin{table*}",
            r"\centering",
            size,
            r"\setlength{\tabcolsep}{3pt}",
        ]
        for i, (panel, rows) in enumerate(parts):
            lines += [r"\par\medskip"] if i else []
            lines += _tabular(panel, rows, breaks)
        lines.append(rf"\caption{{{escape_tex(shown)}}}")
        if number == 0:
            lines.append(rf"\label{{{label}}}")
        texts.append("\n".join([*lines, r"\end{table*}"]) + "\n")
    return "\n".join(texts)


def _panels(columns: Sequence[Column]) -> tuple[str, list[list[Column]]]:
    """Share the columns out to tables that are as wide as a page's text, and choose the font."""
    total = sum(_total_width(*group) for group in groups_of(columns))
    for size, room in _SIZES:
        if total <= room:
            return size, [list(columns)]
    size, room = _SIZES[-1]
    return size, share_out(columns, room, _total_width)


def _total_width(key: tuple[str, str], columns: Sequence[Column]) -> float:
    """Estimate the width of neighbours, whose common head may be wider than they are."""
    widths = sum(_width(column) for column in columns)
    return max(widths, _text_width(with_unit(*key)) + _COLUMN_GAP) if key[0] else widths


def _width(column: Column) -> float:
    """Estimate a column's width, in digits of its font."""
    texts = [own_head(column), *column.cells]
    return max(_text_width(text) for text in texts) + _COLUMN_GAP


def _text_width(text: str) -> float:
    return sum(_WIDTHS.get(c, 1.35 if c.isupper() else 1.0) for c in text)


def _floats(
    panels: list[list[Column]], breaks: frozenset[int], count: int
) -> list[list[tuple[list[Column], range]]]:
    """Share panels out to pages; a panel that is longer than a page is cut, best at a break."""
    floats: list[list[tuple[list[Column], range]]] = [[]]
    used = 0
    for panel in panels:
        for rows in _cut(breaks, count):
            lines = len(rows) + 4
            if floats[-1] and used + lines > _MOST_LINES + 4:
                floats.append([])
                used = 0
            floats[-1].append((panel, rows))
            used += lines
    return floats


def _cut(breaks: frozenset[int], count: int) -> Iterator[range]:
    start = 0
    while count - start > _MOST_LINES:
        places = [b for b in breaks if start < b <= start + _MOST_LINES]
        end = max(places, default=start + _MOST_LINES)
        yield range(start, end)
        start = end
    yield range(start, count)


def _tabular(columns: Sequence[Column], rows: range, breaks: frozenset[int]) -> list[str]:
    # The unit goes with the group's head, which leaves the columns as narrow as their numbers.
    upper, rules, start = [], [], 1
    for (group, unit), members in groups_of(columns):
        width = len(members)
        if group:
            head = escape_tex(with_unit(group, unit))
            upper.append(rf"\multicolumn{{{width}}}{{c}}{{{head}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        else:
            upper += [""] * width
        start += width
    lines = [
        rf"\begin{{tabular}}{{{''.join('l' if c.is_text else 'r' for c in columns)}}}",
        r"\toprule",
    ]
    if rules:
        lines += [_tex_row(upper), "".join(rules)]
    lines += [_tex_row([escape_tex(own_head(column)) for column in columns]), r"\midrule"]
    for i in rows:
        if i in breaks and i != rows.start:
            lines.append(r"\midrule")
        lines.append(_tex_row([escape_tex(column.cells[i]) for column in columns]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _tex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
