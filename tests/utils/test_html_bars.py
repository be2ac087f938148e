"""Bars in tables: their sides and lengths."""

import re

import pytest

from spr_or.utils.html_bars import bars


def placed(values: list[float]) -> list[tuple[float, float]]:
    """(left, width) of each bar in percent."""
    found = [re.search(r"left: ([\d.]+)%; width: ([\d.]+)%", bar) for bar in bars(values)]
    return [(float(one[1]), float(one[2])) for one in found if one]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 1.0], [(0, 100), (0, 50)]),
        ([2.0, -1.0], [(50, 50), (25, 25)]),
        ([0.0, 0.0], [(0, 0), (0, 0)]),
        ([], []),
    ],
)
def test_bars_begin_at_zero_and_the_largest_is_longest(values, expected) -> None:
    assert placed(values) == expected
