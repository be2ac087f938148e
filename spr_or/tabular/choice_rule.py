"""Which of several lambdas and alphas is chosen, from what speaks for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from spr_or.proof.certificate import ProofCertificate

CRITERIA = ("cv", "bic", "ebic")
RULES = ("one standard error", "least")


class Compared(Protocol):
    """A lambda and alpha: mean held-out loss with its standard error, and information criteria."""

    @property
    def alpha(self) -> float:
        """Its value."""

    @property
    def loss(self) -> float:
        """Mean over the folds; used with the criterion "cv" only, as `spread`."""

    @property
    def spread(self) -> float:
        """Standard error of `loss`."""

    @property
    def bic(self) -> float:
        """Of the whole data, as `ebic`."""

    @property
    def ebic(self) -> float:
        """See `criteria`."""


def chosen(found: Sequence[Compared], criterion: str = "cv", rule: str = RULES[0]) -> int:
    """The place of the candidate that is chosen.

    With "cv" the least mean held-out loss, or by the rule of one standard error the largest lambda of
    the same alpha whose mean loss is at most one standard error above it; with "bic" and "ebic" the least
    value.  Of equal ones the first; ``found`` has the largest lambda of each alpha first.  Raises
    ``ValueError`` for other words.
    """
    check_words(criterion, rule)
    places = range(len(found))
    if criterion != "cv":
        return min(places, key=lambda i: getattr(found[i], criterion))
    best = min(places, key=lambda i: found[i].loss)
    if rule != RULES[0]:
        return best
    limit = found[best].loss + found[best].spread
    return next(i for i in places if found[i].alpha == found[best].alpha and found[i].loss <= limit)


def check_words(criterion: str, rule: str) -> None:
    """Raise ``ValueError`` for a criterion or rule that there is not."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")


def criteria(certificate: ProofCertificate) -> tuple[float, float]:
    r"""BIC and EBIC: deviance + d log n, and 2 log(N over k) more for k of N groups in use.

    d counts the weights in use and the intercepts.  The deviance is n log(mean squared residual) with
    the squared loss, summed over outputs, and twice the sum of the losses with the others.  The second
    term is that of Chen and Chen (2008) with gamma = 1, for groups in the place of columns.
    """
    problem = certificate.problem
    residual = problem.predict(certificate.weights)
    n, q = problem.n, problem.n_outputs
    if problem.loss == "squared":
        squares = (residual - problem.y).square().mean(0)
        deviance = n * float(squares.clamp(min=1e-300).log().sum())
    else:
        deviance = 2 * n * float(problem.loss_value(certificate.weights))
    used = certificate.indicators.bool()
    sizes = torch.as_tensor(problem.entities.sizes)
    # An intercept is a free column, or came from centring: one for each output either way.
    free = len(problem.entities.free) // q
    d = int(sizes[used].sum()) + q * max(1, free)
    bic = deviance + d * math.log(n)
    return bic, bic + 2 * math.log(math.comb(len(used), int(used.sum())))
