"""A table for readers, written as LaTeX, Markdown and HTML; its raw numbers as CSV."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iskd.errors import UserError
from iskd.paper.columns import Column, groups_of, own_head, share_out
from iskd.paper.csv_text import csv_text
from iskd.paper.formats import with_unit
from iskd.paper.latex import tex_table

_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")
_HTML_STYLE = """\
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.2em; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0 0 1.2em; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .55em; text-align: right; white-space: nowrap; vertical-align: top; }
td small { color: #555; }
th.text, td.text { text-align: left; }
thead th { border-bottom: 1px solid #999; font-weight: 600; vertical-align: bottom; }
thead th.group { border-bottom: 1px solid #ccc; text-align: center; white-space: normal; }
tr.first td { border-top: 1px solid #999; }
tbody tr:hover { background: #f2f5f9; }
figure { margin: 0; }
figure svg { display: block; max-width: 100%; max-height: 78vh; margin: 0 auto 1em; }
p, figcaption { max-width: 60em; }
figcaption { margin: 0 auto; }
"""
# Pixels of a table beside the menu of a report that is 1,400 wide; of a digit, of one of an
# interval, which is smaller and stands below the number; and of the space between two columns.
_HTML_ROOM, _DIGIT, _SMALL_DIGIT, _SPACE = 1000.0, 7.8, 6.6, 15.4


def save_columns(
    columns: Sequence[Column],
    frame: pd.DataFrame,
    stem: Path,
    caption: str,
    label: str,
    *,
    breaks: frozenset[int] = frozenset(),
) -> None:
    """Write a table as `<stem>.csv` (raw numbers), `.md`, `.html` and `.tex` (for readers).

    The LaTeX needs the package booktabs and fits the text of a two-column A4 paper: columns that
    do not fit side by side go below one another in the same `table*`, and what does not fit on a
    page goes into a further one.

    Args:
        columns: the table for readers.
        frame: the same, unrounded.
        stem: the path without its suffix.
        caption: plain text; what is special to LaTeX, Markdown or HTML is escaped.
        label: the LaTeX label, of letters, digits and ":.-".
        breaks: rows before which a rule parts them from those above.

    Raises:
        UserError: the label has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9:.-]+", label):
        raise UserError(f"label {label!r}: use letters, digits, colon, point and hyphen")
    caption = " ".join(caption.split())
    for suffix, text in (
        ("csv", csv_text(frame)),
        ("md", _markdown(columns, caption)),
        ("html", html_page(caption, html_table(columns, breaks))),
        ("tex", tex_table(columns, breaks, caption, label)),
    ):
        stem.with_name(f"{stem.name}.{suffix}").write_bytes(text.encode())


def escape_markdown(text: str) -> str:
    """Escape what Markdown takes for markup."""
    return _MARKDOWN_SPECIAL.sub(r"\\\1", text)


# --- Markdown -------------------------------------------------------------------------------


def markdown_rows(columns: Sequence[Column]) -> list[str]:
    """Give the lines of a Markdown table."""
    heads = [with_unit(f"{column.group} {column.head}".strip(), column.unit) for column in columns]
    lines = [
        _markdown_row(heads),
        "| " + " | ".join(":---" if column.is_text else "---:" for column in columns) + " |",
    ]
    rows = zip(*(column.cells for column in columns), strict=True)
    return lines + [_markdown_row(list(cells)) for cells in rows]


def _markdown(columns: Sequence[Column], caption: str) -> str:
    lines = [f"Table: {escape_markdown(caption)}", "", *markdown_rows(columns)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


# --- HTML -----------------------------------------------------------------------------------


def html_page(caption: str, body: str) -> str:
    """Give a page that needs no other file: a body, and a caption below."""
    below = f"<p>{html.escape(caption)}</p>\n" if caption else ""
    return _page("Table", f"{body}{below}")


def figure_page(svg: str, caption: str) -> str:
    """Give a page that needs no other file: a figure, and its caption below.

    Args:
        svg: the figure's file.
        caption: text with the little markup that the report's captions have: two asterisks around
            what is bold, one around what is emphasised, two backticks around code.
    """
    drawing = svg[svg.index("<svg") :]
    # Its size is the page's to say.
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="1000"', drawing, count=1)
    text = html.escape(" ".join(caption.split()), quote=False)
    for sign, name in ((r"\*\*", "strong"), ("``", "code"), (r"\*", "em")):
        text = re.sub(rf"{sign}(.+?){sign}", rf"<{name}>\1</{name}>", text)
    return _page("Figure", f"<figure>\n{drawing}<figcaption>{text}</figcaption>\n</figure>\n")


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>\n{_HTML_STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def html_table(columns: Sequence[Column], breaks: frozenset[int] = frozenset()) -> str:
    """Give a table as HTML: several ones below one another where one would be too wide."""
    tables = [list(columns)]
    if sum(_width(*group) for group in groups_of(columns)) > _HTML_ROOM:
        tables = share_out(columns, _HTML_ROOM, _width)
    return "".join(_html_table(table, breaks) for table in tables)


def _width(key: tuple[str, str], columns: Sequence[Column]) -> float:
    """Estimate how many pixels neighbours take, whose common head may be wider than they are."""
    widths = []
    for column in columns:
        cells = [_parted(cell) for cell in column.cells]
        upper = max(len(text) for text in (own_head(column), *(number for number, _ in cells)))
        lower = max((len(interval) for _, interval in cells), default=0)
        widths.append(max(upper * _DIGIT, lower * _SMALL_DIGIT) + _SPACE)
    # A head of a group goes on in a second line at a blank.
    longest = max(map(len, with_unit(*key).split()), default=0) if key[0] else 0
    return max(sum(widths), longest * _DIGIT + _SPACE)


def _parted(cell: str) -> tuple[str, str]:
    """Part a number from the interval behind it."""
    number, blank, interval = cell.partition(" [")
    return number, f"[{interval}" if blank else ""


def _html_table(columns: Sequence[Column], breaks: frozenset[int]) -> str:
    lines = ["<table>", "<thead>"]
    if any(column.group for column in columns):
        cells = []
        for (group, unit), members in groups_of(columns):
            head = html.escape(with_unit(group, unit)) if group else ""
            kind = ' class="group"' if group else ""
            cells.append(f'<th{kind} colspan="{len(members)}">{head}</th>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kinds = [' class="text"' if column.is_text else "" for column in columns]
    heads = [html.escape(own_head(column)) for column in columns]
    row = "".join(f"<th{kind}>{head}</th>" for kind, head in zip(kinds, heads, strict=True))
    lines += [f"<tr>{row}</tr>", "</thead>", "<tbody>"]
    first = ' class="first"'
    for i, shown in enumerate(zip(*(column.cells for column in columns), strict=True)):
        row = "".join(f"<td{k}>{_html_cell(c)}</td>" for k, c in zip(kinds, shown, strict=True))
        lines.append(f"<tr{first if i in breaks else ''}>{row}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def _html_cell(cell: str) -> str:
    number, interval = (html.escape(part) for part in _parted(cell))
    return f"{number}<br><small>{interval}</small>" if interval else number
