"""Radii of sums, products and factorisations against fractions."""

from fractions import Fraction

import numpy as np
import pytest

from spr_or.proof.rounding import gamma, lengths, operations, positive_definite, product, total


@pytest.mark.parametrize("seed", range(6))
def test_sums_lie_within_their_radius(seed):
    rng = np.random.default_rng(seed)
    terms = rng.normal(size=int(rng.integers(1, 3000))) * 10.0 ** rng.uniform(-12, 12)
    terms[1::2] = -terms[: len(terms) - 1 : 2]  # cancels
    value, radius = total(terms)
    exact = sum(map(Fraction, terms.tolist()), Fraction(0))
    assert abs(Fraction(value) - exact) <= Fraction(radius)


@pytest.mark.parametrize("seed", range(4))
def test_products_lie_within_gamma(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 2000))
    A, B = rng.normal(size=(n, 2)) * 10.0 ** rng.uniform(-5, 5, size=2), rng.normal(size=(n, 2))
    found = product(A, B)
    for i in range(2):
        for j in range(2):
            pairs = list(zip(A[:, i].tolist(), B[:, j].tolist(), strict=True))
            exact = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
            most = sum((abs(Fraction(a) * Fraction(b)) for a, b in pairs), Fraction(0))
            error = abs(Fraction(float(found[i, j])) - exact)
            assert error <= Fraction(gamma(operations(n))) * most
            assert most <= Fraction(float(lengths(A)[i])) * Fraction(float(lengths(B)[j]))


def test_a_matrix_that_is_a_little_indefinite_is_never_accepted():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(1, 30))
        Q = np.linalg.qr(rng.normal(size=(count, count)))[0]
        scale = 10.0 ** rng.uniform(-6, 6, size=count)
        values = rng.uniform(0.1, 3, size=count)
        values[0] = -1e-13
        A = scale[:, None] * (Q * values @ Q.T) * scale
        assert not positive_definite((A + A.T) / 2, np.zeros(count))
        values[0] = 1e-6
        A = scale[:, None] * (Q * values @ Q.T) * scale
        assert positive_definite((A + A.T) / 2, np.zeros(count))


def test_nothing_that_is_not_a_number_is_positive():
    for bad in (np.nan, np.inf, -np.inf):
        assert not positive_definite(np.array([[1.0, 0.0], [0.0, bad]]), np.zeros(2))


def test_too_many_operations_are_refused():
    with pytest.raises(ValueError, match="too many to bound"):
        gamma(10**14)
