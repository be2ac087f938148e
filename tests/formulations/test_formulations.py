"""The encoding of networks and the two Pyomo models, against forward passes and training runs."""

from functools import cache

import pytest
import torch
from pyomo.environ import Constraint, Var, value
from slow_cases import slow_unless
from torch import nn

from spr_or import SparseTrainingProblem
from spr_or.formulations import bigm, perspective
from spr_or.formulations.entities import filters, neurons
from spr_or.solvers import highs, network_enumeration, network_sgd, scip
from spr_or.verification.instances import INSTANCES


def network(seed: int, loss: str = "squared", outputs: int = 1) -> SparseTrainingProblem:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, outputs))
    X = torch.randn(5, 2, generator=generator)
    y = torch.randn(5, outputs, generator=generator)
    if loss == "hinge":
        y = torch.where(y > 0, 1.0, -1.0)
    return SparseTrainingProblem.network(
        net, X, y, neurons(net), loss=loss, lam=0.05, alpha=0.3, M=1.5, u="uniform",
        name=f"net-{seed}",
    )  # fmt: skip


def names(model, kind):
    return {component.local_name for component in model.component_objects(kind, descend_into=False)}


@pytest.mark.parametrize("instance", ["regression-8x3", "relu-xor", "digits-hinge"])
def test_the_formulations_differ_by_the_cone_alone(instance):
    problem = INSTANCES[instance]()
    for relaxed in (False, True):
        one, other = bigm.build(problem, relaxed), perspective.build(problem, relaxed)
        assert names(other, Var) - names(one, Var) == {"t"}
        assert names(other, Constraint) - names(one, Constraint) == {"cone"}
        assert names(one, Var) <= names(other, Var)
        assert all(y.is_binary() != relaxed for y in one.y.values())


@cache
def trained(seed: int, loss: str) -> float:
    """The best objective of many runs, the same for both formulations."""
    return network_sgd.solve(network(seed, loss), starts=32, steps=300).objective


@pytest.mark.parametrize("formulation", ["bigm", "perspective"])
@pytest.mark.parametrize("loss", ["squared", "absolute", "hinge"])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed == 0, range(2)))
def test_no_training_run_lands_below_the_proven_bound(formulation, loss, seed):
    # A cut or a bound in the encoding that is not valid would lift the bound above real networks.
    problem = network(seed, loss)
    bound = scip.solve(problem, formulation, relaxed=True, time_limit=20).bound
    assert bound <= trained(seed, loss) + 1e-6


def test_two_outputs_and_padding_are_encoded():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(2, 2),
    )  # fmt: skip
    X = torch.randn(3, 1, 3, 3, generator=generator)
    y = torch.randn(3, 2, generator=generator)
    problem = SparseTrainingProblem.network(
        net, X, y, filters(net), lam=0.05, alpha=0.3, M=1.0, M_free=1.0, u="uniform"
    )
    certificate = scip.solve(problem, "bigm", time_limit=0.5)
    trained = network_sgd.solve(problem, starts=32, steps=300)
    assert certificate.bound <= certificate.objective + 1e-6
    relaxed = scip.solve(problem, "perspective", relaxed=True, time_limit=1)
    assert relaxed.bound <= trained.objective + 1e-6


def test_the_model_agrees_with_the_forward_pass():
    problem = network(3)
    model = bigm.build(problem)
    from pyomo.contrib.solver.common.factory import SolverFactory

    SolverFactory("scip_direct").solve(model)
    theta = torch.tensor([v.value for v in model.w.values()], dtype=torch.float64)
    f = torch.tensor([float(value(e)) for e in model.f.values()], dtype=torch.float64)
    torch.testing.assert_close(f, problem.predict(theta).detach().flatten(), rtol=0, atol=1e-5)
    loss = float(problem.loss_value(theta))
    assert value(model.loss) == pytest.approx(loss, abs=1e-5)


def test_formulations_and_supports_agree_on_a_network():
    problem = network(4)
    values = [
        scip.solve(problem, "bigm").objective,
        scip.solve(problem, "perspective").objective,
        network_enumeration.solve(problem).objective,
    ]
    assert max(values) - min(values) <= 1e-5 * max(values)


def test_a_time_limit_on_a_network_is_honest():
    problem = INSTANCES["relu-zigzag-3"]()
    certificate = scip.solve(problem, "bigm", time_limit=0.2)
    assert certificate.status != "optimal" or certificate.gap <= 1e-5
    assert certificate.bound <= certificate.objective


def test_highs_says_what_it_cannot_take():
    with pytest.raises(ValueError, match="outer_approximation or scip"):
        highs.solve(INSTANCES["regression-8x3"](), relaxed=False)
    with pytest.raises(ValueError, match="logistic"):
        highs.solve(INSTANCES["digits-logistic"]())
    with pytest.raises(ValueError, match="scip"):
        highs.solve(INSTANCES["relu-xor"]())
