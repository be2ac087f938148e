"""Names and texts from files, made harmless where they are shown.

A column of a table or a layer of a network may be called anything: control characters and escape
sequences, which a terminal obeys; marks that turn the direction of what follows; line breaks, with
which a name could pose as a line of the program; `$`, between which matplotlib sets mathematics.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Text without characters that a terminal obeys or that are not seen; line breaks stay.

    >>> printable("height [cm]"), printable("a\\x1b[2Jb"), printable("a\\u202eb")
    ('height [cm]', 'a?[2Jb', 'a?b')
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def one_line(name: object) -> str:
    """`printable` for a name, which has no line breaks either.

    >>> one_line("age\\nall claims hold")
    'age?all claims hold'
    """
    return "".join(c if c.isprintable() else "?" for c in str(name))


def picture_text(name: object) -> str:
    """`one_line` for matplotlib, which shows it letter by letter and sets no mathematics.

    >>> picture_text("US$ per $")
    'US\\\\$ per \\\\$'
    """
    return one_line(name).replace("$", r"\$")
