"""Numbers of things in words."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """A number and what is counted, in the singular or the plural.

    >>> counted(1, "epoch"), counted(1200, "run"), counted(0, "dense phase")
    ('1 epoch', '1,200 runs', '0 dense phases')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
