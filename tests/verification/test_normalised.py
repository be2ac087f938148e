"""Problems in units of their own, and verdicts that do not depend on units."""

import dataclasses
import itertools

import pytest
import torch
from slow_cases import slow_unless

from spr_or import SparseTrainingProblem
from spr_or.formulations import bigm
from spr_or.verification.instances import INSTANCES
from spr_or.verification.ladder import scale_of
from spr_or.verification.ladder_of_bounds import verify
from spr_or.verification.normalised import normalised


def in_other_units(problem: SparseTrainingProblem, unit: float, *, price: bool):
    """Data and real targets times ``unit``; with ``price`` lambda as the loss."""
    real = problem.loss in ("squared", "absolute")
    loss = {"squared": unit**2, "absolute": unit}.get(problem.loss, 1.0)
    return dataclasses.replace(
        problem,
        X=problem.X * unit,
        y=problem.y * unit if real else problem.y,
        M=problem.M if real else problem.M / unit,
        lam=problem.lam * loss if price else problem.lam,
    )


def at(problem, theta, y):
    rows = problem.entities.rows(theta)
    return float(problem.objective(theta, bigm.penalty(rows, y, problem.alpha)))


@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.parametrize("unit", [1e-9, 3e-4, 1.0, 7e5])
def test_a_normalised_problem_has_the_same_values_in_its_units(name, unit):
    problem = in_other_units(INSTANCES[name](), unit, price=False)
    inner, units = normalised(problem)
    torch.manual_seed(0)
    y = (torch.rand(len(problem.entities)) < 0.5).double()
    theta = torch.randn(problem.entities.n_parameters, dtype=torch.float64)
    value = at(problem, theta * units.weights, y)
    assert at(inner, theta, y) * units.objective == pytest.approx(value, rel=1e-13)
    assert inner.M * units.weights == pytest.approx(problem.M, rel=0)
    if problem.loss in ("squared", "absolute"):
        assert 0.3 < scale_of(inner) < 3


def test_a_network_in_other_units_is_encoded_as_it_predicts():
    import pyomo.environ as pyo

    problem, _ = normalised(in_other_units(INSTANCES["relu-xor"](), 1e4, price=True))
    assert problem.bias_input < 1e-3
    model = bigm.build(problem)
    torch.manual_seed(1)
    theta = torch.rand(problem.entities.n_parameters, dtype=torch.float64)  # every ReLU is open
    for j, value in enumerate(theta.tolist()):
        model.w[j].set_value(value)
    hidden = problem.X @ theta[:4].view(2, 2).T + problem.bias_input * theta[4:6]
    expected = hidden @ theta[6:8] + problem.bias_input * theta[8]  # X is not negative
    assert torch.allclose(problem.predict(theta).flatten(), expected, rtol=1e-13, atol=0)
    for (m, o), row in model.layer[0].affine.items():
        model.layer[0].z[m, o].set_value(float(hidden[m, o]))
        assert pyo.value(row.body) == pytest.approx(pyo.value(row.upper), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "unit", "price"),
    slow_unless(
        lambda name, unit, price: price == (name == "regression-8x3"),
        itertools.product(["regression-8x3", "absolute-linear"], [1e-4, 1e4], [True, False]),
    ),
)
def test_verdicts_do_not_depend_on_the_units(name, unit, price):
    ladder = verify(in_other_units(INSTANCES[name](), unit, price=price))
    assert ladder.ok, [check for check in ladder.checks if not check.holds]


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_the_printed_form_is_refuted_in_all_units(unit):
    problem = in_other_units(INSTANCES["regression-8x3"](), unit, price=False)
    ladder = verify(problem, variant="printed")
    refuted = [check.claim for check in ladder.checks if check.verdict == "refuted"]
    assert ladder.verdict == "refuted"
    assert any("least penalty" in claim for claim in refuted)
    assert any("finite differences" in claim for claim in refuted)


def test_a_network_is_verified_in_other_units():
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    X, y = [[-1.0], [0.0], [1.0]], [0.0, 0.2, 1.5]
    problem = SparseTrainingProblem.network(net, X, y, [[0, 1]], lam=0.1, alpha=0.3, M=2)
    ladder = verify(in_other_units(problem, 1e-4, price=True))
    assert ladder.ok, [check for check in ladder.checks if not check.holds]
