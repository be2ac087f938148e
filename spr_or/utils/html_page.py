"""Parts of a self-contained HTML page: escaped text, tables, tiles and pictures inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from spr_or.utils.page_style import STYLE
from spr_or.utils.printable import printable

_MOST_FOLDED = 5  # columns of numbers that 400 pixels have room for


def escaped(value: object) -> str:
    """Text for HTML, quotes included, so that it may stand in an attribute too; what is not seen, such
    as marks that turn the direction of what follows, is shown as a question mark.

    >>> escaped('a "b" <c>')
    'a &quot;b&quot; &lt;c&gt;'
    """
    return html.escape(printable(str(value)), quote=True)


def head(title: str) -> str:
    """The beginning of a page, with its style and the title as its heading; plain text in."""
    shown = escaped(title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title><style>{STYLE}</style><h1>{shown}</h1>"
    )


def table_row(cell: str, values: Sequence[str], aside: str = "") -> str:
    """One row of a table; ``cell`` is th or td, ``aside`` is HTML that follows the text of its first cell."""
    first, *rest = (f"<{cell}>{escaped(value)}" for value in values)
    return "<tr>" + first + aside + "".join(rest)


def scroll(rows: str, columns: int = 0) -> str:
    """A table that scrolls where it is too wide; with ``columns`` of numbers it folds there instead."""
    fold = f' class="fold" style="--columns: {columns}"' if 2 <= columns <= _MOST_FOLDED else ""
    return f'<div class="scroll"><table{fold}>{rows}</table></div>'


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Headline numbers, each with what it is."""
    items = "".join(
        f"<li><b>{escaped(big)}</b><span>{escaped(small)}</span>" for big, small in pairs
    )
    return f'<ul class="tiles">{items}</ul>'


def picture(path: Path, caption: str) -> str:
    """A PNG file as part of the page, with its caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    shown = escaped(caption)
    return (
        f'<figure><img alt="{shown}" src="data:image/png;base64,{data}">'
        f"<figcaption>{shown}</figcaption></figure>"
    )
