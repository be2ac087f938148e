"""Newton steps at nodes: the derivative of the prox, and what they bring where gradient steps crawl."""

import dataclasses
import math

import pytest
import torch

from spr_or.certified_solver import node_fista, node_newton
from spr_or.certified_solver.bounds import Terms
from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.node_prox import node_prox
from spr_or.formulations.problem import SparseTrainingProblem


def correlated(loss: str, **more) -> SparseTrainingProblem:
    """Columns of very different scales that one factor joins, in groups of one and two."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    X = (
        X + 3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    ) * 10.0 ** torch.arange(8)
    y = X[:, 0] - X[:, 5] / 1e5 + torch.randn(40, generator=generator, dtype=torch.float64)
    if loss == "logistic":
        y = torch.where(y > y.median(), 1.0, -1.0)
    parts = [[0], [1, 2], [3], [4, 5], [6], [7]]
    return SparseTrainingProblem.linear(X, y, parts, loss, lam=1e-3, alpha=0.01, M=20.0, **more)


def everything_free(design: Design) -> Terms:
    free = torch.ones(1, design.shape[0], dtype=torch.bool)
    return Terms(None, free, ~free)


@pytest.mark.parametrize("more", [{}, {"nonnegative": [0, 3, 4]}, {"max_entities": 3}])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0, 100.0])
def test_the_derivative_of_the_prox_is_that_of_differences(size, more):
    """Small rows become zero, large ones meet their bound or y = 1; fixings at 0 and at 1 are among them."""
    problem = correlated("squared", **more)
    problem = dataclasses.replace(problem, M=torch.full_like(problem.M, 0.5), alpha=0.3)
    design = design_of(problem)
    design = design.with_shadow(0.4) if "max_entities" in more else design
    N, k, _ = design.shape
    one = torch.zeros(1, N, dtype=torch.bool)
    one[0, 1] = True
    free = ~one
    free[0, 4] = False
    prox = node_prox(design, torch.full((N,), 50.0, dtype=torch.float64), Terms(None, free, one))
    generator = torch.Generator().manual_seed(int(100 * size))
    V = size * torch.randn(1, N, k, 1, generator=generator, dtype=torch.float64)
    V = V * design.real.unsqueeze(-1)
    found = prox.derivative(V)
    rows = found.factor.unsqueeze(-1) * found.column.unsqueeze(-1) * found.column.unsqueeze(-2)
    jacobian = rows + torch.diag_embed(found.diagonal)
    for j in range(k):
        step = torch.zeros_like(V)
        step[:, :, j] = 1e-6 * size
        difference = (prox.shrink(V + step) - prox.shrink(V - step)).view(N, k) / (2e-6 * size)
        torch.testing.assert_close(jacobian[..., j], difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_few_newton_steps_end_what_gradient_steps_do_not(loss, monkeypatch):
    design = design_of(correlated(loss))
    design = design.with_moments() if loss == "squared" else design
    smooth, terms = node_fista.smooth_part(design), everything_free(design)

    def gap() -> float:
        zero = torch.zeros(1, *design.shape, dtype=torch.float64)
        found = node_fista.solve(smooth, zero, terms, tolerance=1e-12, iterations=60)
        return float((found.value - found.bound) / found.value)

    assert gap() < 1e-6
    monkeypatch.setattr(node_newton, "affordable", lambda design, nodes: False)
    assert gap() > 1e-3


def test_equations_without_a_solution_leave_the_point_where_it_is():
    design = design_of(correlated("squared")).with_moments()
    smooth, terms = node_fista.smooth_part(design), everything_free(design)
    prox = node_prox(design, 1 / smooth.smoothness, terms)
    W = torch.zeros(1, *design.shape, dtype=torch.float64)
    V = torch.full_like(W, math.nan)
    moved = node_newton.step(design, W, V, prox, 1 / smooth.smoothness, None)
    assert torch.equal(moved, W)
