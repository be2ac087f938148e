"""How a table is read, as it was asked for, and what was done with its columns: both are stored.

A check reads the data again in the same way and compares what was done.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Reading(_Part):
    """What the user says about a file.

    header : whether the first row names the columns; None: yes, unless it looks like data
    decimal : the decimal mark of a text file
    encoding : of a text file; None: UTF-8, or UTF-16 with a byte order mark
    drop, columns : columns to leave out, columns to use; None: all that are left
    missing : what happens to missing values; None: they are an error
    as_is : no column is set aside or coded, as before there was a preparation
    """

    header: bool | None = None
    decimal: Literal[".", ","] = "."
    encoding: str | None = None
    drop: str | None = None
    columns: str | None = None
    missing: Literal["drop", "mean"] | None = None
    as_is: bool = False


class Coding(_Part):
    """A variable of words: the level without a column, and the levels that have one."""

    reference: str
    levels: list[str]


class Preparation(_Part):
    """What was asked and what was done with the columns of a table.

    rows_left_out : rows with a missing value that are not used
    set_aside : name of a column to the reason why it is not used
    coded : variable of words to its levels; filled : column to the mean that stands for its gaps
    kept_equal : columns that equal an earlier one and are used, as they stand in another group
    """

    asked: Reading
    rows_left_out: int = 0
    set_aside: dict[str, str] = {}
    coded: dict[str, Coding] = {}
    filled: dict[str, float] = {}
    kept_equal: list[str] = []

    @property
    def plain(self) -> bool:
        """Whether the table enters as it stands in its file."""
        done = (self.set_aside, self.coded, self.filled)
        return self.asked in (Reading(), Reading(as_is=True)) and not (
            self.rows_left_out or any(done)
        )

    def content(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return self.model_dump()

    def agrees(self, other: Preparation) -> bool:
        """Whether the same was done, filled means up to rounding."""
        mine, theirs = self.filled, other.filled
        return (
            self.model_copy(update={"filled": {}}) == other.model_copy(update={"filled": {}})
            and mine.keys() == theirs.keys()
            and all(math.isclose(mine[k], theirs[k], rel_tol=1e-9) for k in mine)
        )
