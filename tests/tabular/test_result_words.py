"""Sentences about results, where the numbers are odd."""

import pytest

from spr_or.tabular.pool import Pool
from spr_or.tabular.result_words import what_others_reach


@pytest.mark.parametrize(
    ("others", "share", "said"),
    [
        (0.3, 25.0, "all others are at least 25 % above it"),
        (0.3, -21.5, "all others cost at least 0.3"),  # a bound below the best, which is near zero
        (0.3, None, "all others cost at least 0.3"),  # a best of zero
    ],
)
def test_what_all_other_choices_cost(others: float, share: float | None, said: str) -> None:
    pool = Pool([], 1.0, complete=False, others=others, others_pct=share)
    assert what_others_reach(pool).endswith(said)
