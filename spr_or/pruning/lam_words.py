"""What lambda may be: a number, a share of lambda_max, or "auto"."""

from __future__ import annotations

import math
import re

AUTO = "auto"
# "auto" as shares of lambda_max: where lambda starts with a budget, which raises it when too little
# goes, and lambda where nothing moves it. See docs/lab/lambda.md.
START, FIXED = 0.02, 0.3
# With a budget the start is also at most HELD times the lambda that would meet it if the loss held nothing,
# and at least LEAST times. On ResNet-20 less than a hundredth could go after three epochs up to 4 times,
# 43 % after one of 20 times; on the digits network 6 % after three epochs of up to 17 times.
HELD, LEAST = 4.0, 0.5

Lam = float | str


def share_of_max(lam: Lam, budget: bool) -> float | None:
    """The share of lambda_max that ``lam`` stands for; None for a number.

    ``budget``: whether lambda is moved to meet a target. Raises ``ValueError`` for other text, and
    for numbers that are negative or not finite.

    >>> share_of_max("0.1 max", budget=False), share_of_max(0.1, budget=False)
    (0.1, None)
    """
    if not isinstance(lam, str):
        if isinstance(lam, bool) or not 0 <= lam < math.inf:
            raise ValueError(f"lam must be a finite number >= 0, got {lam!r}")
        return None
    if lam.strip() == AUTO:
        return START if budget else FIXED
    share = share_in(lam)
    if share is None:
        raise ValueError(
            f'lam must be a number, "auto" or a share of the largest lambda such as "0.1 max", '
            f"got {lam!r}"
        )
    return share


def share_in(words: str) -> float | None:
    """The share in words such as "0.1 max"; None for other text, and for one that is not positive and finite.

    >>> share_in("0.1 max"), share_in("auto")
    (0.1, None)
    """
    found = re.fullmatch(r"\s*([\d.]+(?:[eE][-+]?\d+)?)\s+max\s*", words)
    try:
        share = float(found[1]) if found else 0.0
    except ValueError:  # such as 0.1.2
        return None
    return share if 0 < share < math.inf else None
