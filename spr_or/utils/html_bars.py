"""Bars in the cells of an HTML table: sizes at a glance, without a picture."""

from __future__ import annotations

from collections.abc import Sequence

from spr_or.utils.html_page import escaped


def bars(values: Sequence[float]) -> list[str]:
    """A cell for each value: a bar to the right, or to the left where it is negative.

    The longest bar is that of the largest size.  Zero stands at the left end where no value is negative.

    >>> len(bars([2.0, -1.0])), "negative" in bars([2.0, -1.0])[1]
    (2, True)
    """
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    signed = any(value < 0 for value in values)
    room, zero = (50.0, 50.0) if signed else (100.0, 0.0)
    return [_bar(value, room * abs(value) / largest, zero) for value in values]


def _bar(value: float, length: float, zero: float) -> str:
    """One cell; ``length`` and ``zero`` in percent of its width."""
    left = zero - length if value < 0 else zero
    kind = "negative" if value < 0 else "positive"
    return (
        f'<td><span class="bar" role="img" aria-label="{escaped(f"{value:.3g}")}" '
        f'style="--zero: {zero:g}%"><i class="{kind}" '
        f'style="left: {left:.1f}%; width: {length:.1f}%"></i></span>'
    )
