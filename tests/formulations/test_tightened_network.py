"""The tightened model keeps every canonical solution that is not worse, and the optimum."""

import pytest
import torch
from pyomo.environ import Constraint, Var
from slow_cases import slow_unless
from small_networks import random_layer
from torch import nn

from spr_or import SparseTrainingProblem
from spr_or.formulations import bigm, one_hidden_layer, perspective, tightened_network
from spr_or.formulations.entities import neurons
from spr_or.solvers import network_sgd, scip


def random_theta(problem, seed):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(problem.entities.n_parameters, generator=generator, dtype=torch.float64)
    theta = theta.clamp(-2, 2)
    theta[list(problem.entities.groups[0])] = 0.0
    return theta


@pytest.mark.parametrize("seed", range(5))
def test_the_canonical_network_is_the_same_function_and_not_dearer(seed):
    problem = random_layer(seed, hidden=4)
    theta = random_theta(problem, seed)
    same = one_hidden_layer.canonical(problem, theta)
    torch.testing.assert_close(problem.predict(same), problem.predict(theta))
    assert one_hidden_layer.value(problem, same) <= one_hidden_layer.value(problem, theta) + 1e-12
    where = one_hidden_layer.places(problem)
    assert same[where.out].abs().eq(problem.M_free).all()
    assert same[where.out].diff().le(0).all()


def placed(problem, model, theta):
    """Give every variable of a tightened model its value at the canonical theta."""
    weights = problem.parameters(theta)
    z = problem.X @ weights["0.weight"].T + weights["0.bias"]
    f = problem.predict(theta).detach()
    for j, value in enumerate(theta.tolist()):
        model.w[j].set_value(value)
    for (m, o), v in model.layer[0].z.items():
        v.set_value(float(z[m, o]))
    for (m, o), v in model.layer[1].a.items():
        v.set_value(max(0.0, float(z[m, o])))
    for (m, _), v in model.layer[2].z.items():
        v.set_value(float(f[m, 0]))
    for (m, i, j), v in model.layer[2].q.items():
        v.set_value(max(0.0, float(z[m, i])) * model.sign[j].value)
    if problem.loss == "hinge":
        for m, e in model.e.items():
            e.set_value(max(0.0, 1 - float(problem.y[m, 0] * f[m, 0])))
    model.worth.set_value(one_hidden_layer.value(problem, theta))


@pytest.mark.parametrize("loss", ["squared", "hinge"])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 2, range(6)))
def test_no_row_cuts_off_the_solution_that_it_comes_from(loss, seed):
    problem = random_layer(seed, loss, n=8, hidden=4)
    trained = network_sgd.solve(problem, starts=4, steps=150, seed=seed).weights
    theta = one_hidden_layer.canonical(problem, trained)
    value = one_hidden_layer.value(problem, theta)
    near = tightened_network.within(problem, value)
    assert float(near.M[0]) <= float(problem.M[0])
    model = bigm.build(near)
    tightened_network.tighten(model, near, value)
    tightened_network.start_from(model, near, theta)
    placed(near, model, theta)
    for row in model.component_data_objects(Constraint, active=True, descend_into=True):
        assert row.slack() >= -1e-9, row.name
    for v in model.component_data_objects(Var, descend_into=True):
        assert v.value is not None, v.name
        assert v.lb is None or v.value >= v.lb - 1e-9, v.name
        assert v.ub is None or v.value <= v.ub + 1e-9, v.name


def test_a_solution_out_of_order_is_cut_off():
    problem = random_layer(0, hidden=3)
    theta = random_theta(problem, 0)
    theta = one_hidden_layer.canonical(problem, theta)
    where = one_hidden_layer.places(problem)
    value = one_hidden_layer.value(problem, theta)
    near = tightened_network.within(problem, value)
    model = bigm.build(near)
    tightened_network.tighten(model, near, value)
    swapped = theta.clone()
    swapped[where.rows] = theta[where.rows].flip(0)
    swapped[where.out] = theta[where.out].flip(0)
    tightened_network.start_from(model, near, theta)
    placed(near, model, swapped)
    for i, (used, v) in enumerate(
        zip((swapped[where.rows] != 0).any(1), swapped[where.out], strict=True)
    ):
        model.y[i].set_value(int(used))
        model.sign[int(where.out[i])].set_value(int(v > 0))
    assert min(row.slack() for row in model.order.values()) < -1e-3


@pytest.mark.parametrize("formulation", ["bigm", "perspective"])
@pytest.mark.parametrize("loss", ["squared", "hinge"])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed == 0, range(3)))
def test_the_optimum_is_that_of_the_plain_model(formulation, loss, seed):
    problem = random_layer(seed, loss, n=5)
    start = network_sgd.solve(problem, starts=8, steps=100).weights
    plain = scip.solve(problem, formulation)
    tight = scip.solve(problem, formulation, start=start)
    assert tight.status == plain.status == "optimal"
    assert tight.objective == pytest.approx(plain.objective, rel=1e-5)
    assert tight.bound <= plain.objective * (1 + 1e-5)


def test_the_start_is_the_answer_where_no_time_is_left():
    problem = random_layer(1, n=8, hidden=4)
    start = network_sgd.solve(problem, starts=4, steps=100).weights
    answer = scip.solve(problem, start=start, time_limit=0.0)
    assert answer.objective <= one_hidden_layer.value(problem, start) + 1e-9
    assert answer.bound <= answer.objective and answer.status != "optimal"


def test_what_is_of_another_kind_is_named():
    problem = random_layer(0)
    zero = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    with pytest.raises(ValueError, match="integer problem"):
        scip.solve(problem, relaxed=True, start=zero)
    with pytest.raises(ValueError, match="alpha must be positive"):
        scip.solve(random_layer(0, alpha=0.0), start=zero)
    with pytest.raises(ValueError, match="same u and M"):
        scip.solve(random_layer(0, M=[1.0, 2.0]), start=zero)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    wide = SparseTrainingProblem.network(
        net, torch.randn(4, 2), torch.randn(4, 2), neurons(net), lam=0.1, alpha=0.5, M=1
    )
    assert "one output" in one_hidden_layer.reason_against(wide)
    linear = SparseTrainingProblem.linear([[1.0]], [1.0], [[0]], lam=0.1, alpha=0.5, M=1)
    assert "Linear, ReLU, Linear" in one_hidden_layer.reason_against(linear)


def test_the_perspective_takes_the_same_rows():
    problem = tightened_network.within(random_layer(0), 0.4)
    model = perspective.build(problem)
    tightened_network.tighten(model, problem, 0.4)
    assert len(model.order) and len(model.tight) and not model.objective.active
